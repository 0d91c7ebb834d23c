"""A tool server with every protocol at its door: native routes, MCP and OpenEnv on one host."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from envs.config import ToolServerConfig
from envs.errors import ConfigError
from envs.mcp_server import McpDoor
from envs.openenv_server import OpenEnvDoor
from envs.tasks import Task
from envs.tool_host import ToolHost
from envs.tool_server import create_app

_KEEP_ALIVE_S = 900
_LOOPBACK = ("127.0.0.1:*", "localhost:*", "[::1]:*")
_MAX_MESSAGE_BYTES = 4 * 2**20


class _Server(uvicorn.Server):
    """Leaves signals to `serve_tasks`: uvicorn raises them again before the host has stopped."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
    host = ToolHost(config)
    openenv = OpenEnvDoor(host, tasks, config)
    by_name = {task.id: task.tool_set for task in tasks}
    by_name |= {task.tool_set.digest: task.tool_set for task in tasks}
    # A token keeps strangers out; without one, a page in the user's browser must not get in.
    allowed_hosts = () if token else _LOOPBACK
    mcp = McpDoor(host, by_name, config, openenv.plain_rpc, allowed_hosts)
    settings = uvicorn.Config(
        create_app(host, token, [openenv.router, mcp.router]),
        lifespan="off",
        log_level="error",
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=2,
        ws="websockets-sansio",
        ws_max_size=_MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
    )
    server = _Server(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
    try:
        await host.start()
        async with mcp.serving(), openenv.serving():
            ready()
            await server.serve(sockets=[listener])
    finally:
        await host.stop()
