"""A tool server with all protocols on one host: the native routes, MCP and OpenEnv."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from envs.config import ToolServerConfig
from envs.gateway.gateway_host import GatewayHost
from envs.gateway.mcp_server import McpGateway
from envs.gateway.openenv_server import OpenEnvGateway
from envs.server.app import create_app
from envs.server.guard import hosts_of
from envs.server.main import serve, session_host
from envs.server.metrics import ToolMetrics
from envs.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTasks:
    """Tasks to serve, with the server's settings.

    `token` is empty if clients need none; `variables` are environment variables, used as ToolRouter
    describes; `allowed_hosts` are names of the server beside those that it knows.
    """

    tasks: Sequence[Task]
    config: ToolServerConfig
    token: str
    variables: Mapping[str, str]
    allowed_hosts: Sequence[str] = ()


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
        mcp = McpGateway(host, by_name, served.config, openenv.plain_rpc)
        hosts = hosts_of(listener, served.allowed_hosts)
        app = create_app(code, served.token, [openenv.router, mcp.router], metrics, hosts)
        async with mcp.serving(), openenv.serving():
            await serve(host, app, listener, ready)
