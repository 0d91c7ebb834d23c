"""A tool server with every protocol at its door: native routes, MCP and OpenEnv on one host."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from envs.config import ToolServerConfig
from envs.gateway.gateway_host import GatewayHost
from envs.gateway.mcp_server import McpDoor
from envs.gateway.openenv_server import OpenEnvDoor
from envs.server.app import create_app
from envs.server.main import serve, session_host
from envs.server.metrics import ToolMetrics
from envs.tasks import Task

_LOOPBACK = ("127.0.0.1:*", "localhost:*", "[::1]:*")


@dataclass(frozen=True, slots=True)
class Offer:
    """Tasks to serve, how, and to whom; see `ToolRouter` for `variables`."""

    tasks: Sequence[Task]
    config: ToolServerConfig
    token: str
    variables: Mapping[str, str]


async def serve_tasks(offer: Offer, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve the tools of the tasks until SIGINT or SIGTERM; calls `ready` once it serves.

    Raises ConfigError, IsolationError, SandboxError, StoreError, ValueError (no tasks).
    """
    metrics = ToolMetrics()
    with session_host(offer.config, metrics) as code:
        host = GatewayHost(code, offer.config, offer.variables)
        openenv = OpenEnvDoor(host, offer.tasks, offer.config)
        by_name = {task.id: task.tool_set for task in offer.tasks}
        by_name |= {task.tool_set.digest: task.tool_set for task in offer.tasks}
        # A token keeps strangers out; without one, a page in the user's browser must not get in.
        allowed_hosts = () if offer.token else _LOOPBACK
        mcp = McpDoor(host, by_name, offer.config, openenv.plain_rpc, allowed_hosts)
        app = create_app(code, offer.token, [openenv.router, mcp.router], metrics)
        async with mcp.serving(), openenv.serving():
            await serve(host, app, listener, ready)
