"""A tool server with all protocols on one host: the native routes, MCP and OpenEnv."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from envs.config import ToolServerConfig
from envs.gateway.gateway_host import GatewayHost
from envs.gateway.mcp_server import McpGateway
from envs.gateway.openenv_server import OpenEnvGateway
from envs.server.app import create_app
from envs.server.main import serve, session_host
from envs.server.metrics import ToolMetrics
from envs.tasks import Task

_LOOPBACK = ("127.0.0.1:*", "localhost:*", "[::1]:*")


@dataclass(frozen=True, slots=True)
class ServedTasks:
    """Tasks to serve, with the server's settings.

    `token` is empty if clients need none; `variables` are environment variables, used as ToolRouter
    describes.
    """

    tasks: Sequence[Task]
    config: ToolServerConfig
    token: str
    variables: Mapping[str, str]


async def serve_tasks(
    served: ServedTasks, listener: socket.socket, ready: Callable[[], None]
) -> None:
    """Serve the tools of the tasks until SIGINT or SIGTERM; calls `ready` when it is ready.

    Raises ConfigError, IsolationError, SandboxError, StoreError, ValueError (no tasks).
    """
    metrics = ToolMetrics()
    with session_host(served.config, metrics) as code:
        host = GatewayHost(code, served.config, served.variables)
        openenv = OpenEnvGateway(host, served.tasks, served.config)
        by_name = {task.id: task.tool_set for task in served.tasks}
        by_name |= {task.tool_set.digest: task.tool_set for task in served.tasks}
        # With a token, only its holders get in. Without one, the Host header is checked, so that a
        # web page in the user's browser cannot use the server.
        allowed_hosts = () if served.token else _LOOPBACK
        mcp = McpGateway(host, by_name, served.config, openenv.plain_rpc, allowed_hosts)
        app = create_app(code, served.token, [openenv.router, mcp.router], metrics)
        async with mcp.serving(), openenv.serving():
            await serve(host, app, listener, ready)
