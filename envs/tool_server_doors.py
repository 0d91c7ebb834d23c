"""A tool server with every protocol at its door: native routes, MCP and OpenEnv on one host."""

import socket
from collections.abc import Callable, Sequence

from envs.config import ToolServerConfig
from envs.errors import ConfigError
from envs.mcp_server import McpDoor
from envs.openenv_server import OpenEnvDoor
from envs.tasks import Task
from envs.tool_metrics import ToolMetrics
from envs.tool_server import serve, session_host
from envs.tool_server_app import create_app

_LOOPBACK = ("127.0.0.1:*", "localhost:*", "[::1]:*")


async def serve_tasks(
    tasks: Sequence[Task],
    config: ToolServerConfig,
    listener: socket.socket,
    token: str,
    ready: Callable[[], None],
) -> None:
    """Serve the tools of `tasks` until SIGINT or SIGTERM; calls `ready` once it serves.

    Raises ConfigError (tools that a tool server does not run), IsolationError, SandboxError.
    """
    foreign = [task.id for task in tasks if not task.tool_set.sandboxed]
    if foreign:
        raise ConfigError(
            f"expected tools of Python code, found an endpoint or an adaptation in {foreign[0]!r}: "
            "those are served where the episodes run, never by a tool server"
        )
    metrics = ToolMetrics()
    with session_host(config, metrics) as host:
        openenv = OpenEnvDoor(host, tasks, config)
        by_name = {task.id: task.tool_set for task in tasks}
        by_name |= {task.tool_set.digest: task.tool_set for task in tasks}
        # A token keeps strangers out; without one, a page in the user's browser must not get in.
        allowed_hosts = () if token else _LOOPBACK
        mcp = McpDoor(host, by_name, config, openenv.plain_rpc, allowed_hosts)
        app = create_app(host, token, [openenv.router, mcp.router], metrics)
        async with mcp.serving(), openenv.serving():
            await serve(host, app, listener, ready)
