"""A tool server inside the test's own process; its sandbox is real."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import uvicorn

from envs.config import IsolationConfig, ToolServerConfig
from envs.server.app import create_app
from envs.server.connection_limits import ConnectionLimits
from envs.server.guard import hosts_of
from envs.server.main import bind_tcp, server_settings
from envs.server.metrics import ToolMetrics
from envs.server.tool_host import ToolHost
from envs.server.wire import unpack_frame
from envs.tools import ToolSet, ToolSpec

CONFIG = ToolServerConfig(
    isolation=IsolationConfig(required="seccomp"), call_timeout_s=5, request_timeout_s=10
)
TOKEN = "open sesame"
SOURCE = """
total = 0
def add(n=1):
    global total
    total += n
    return total
def spin():
    while True: pass
"""
TOOLS = ToolSet(
    tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in ("add", "spin")),
    sources=(SOURCE, SOURCE),
    functions=("add", "spin"),
)


class Served:
    """An app on a TCP port that notes the kinds of requests by frame of `/stream`."""

    def __init__(self, config: ToolServerConfig = CONFIG) -> None:
        self.frames: list[list[str]] = []
        metrics = ToolMetrics()
        self.host = ToolHost(config, observers=[metrics])
        self.listener = bind_tcp("127.0.0.1", 0, "")
        self.app = create_app(self.host, TOKEN, metrics=metrics, hosts=hosts_of(self.listener))
        self.port: int = self.listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        async def noted() -> dict:
            event = await receive()
            if event["type"] == "websocket.receive" and event.get("bytes"):
                with contextlib.suppress(ValueError):
                    self.frames.append([kind for _, kind, _ in unpack_frame(event["bytes"])])
            return event

        await self.app(scope, noted, send)


@contextlib.asynccontextmanager
async def serving(
    config: ToolServerConfig = CONFIG, limits: ConnectionLimits | None = None
) -> AsyncIterator[Served]:
    """Serve for as long as the context lasts."""
    served = Served(config)
    await served.host.start()
    server = uvicorn.Server(server_settings(served, limits))
    task = asyncio.create_task(server._serve([served.listener]))  # serve() would take the signals
    try:
        yield served
    finally:
        server.should_exit = True
        await task
        await served.host.stop()
