"""A SessionHost whose answers a test writes: for what a protocol does when the world goes wrong."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import uvicorn
from fastapi import APIRouter

from envs.server.app import create_app
from envs.server.session_host import SessionHost
from envs.server.wire import CallItem, CallResult, Health, OpenedSession, OpenItem, WireError
from envs.tasks import Score, Task
from envs.tools import AnswerStatus, ToolAnswer, ToolSet, ToolSpec

TOOLS = ToolSet(
    tools=(
        ToolSpec(
            name="echo",
            description="Say it again.",
            parameters={"type": "object", "properties": {"text": {"type": "string"}}},
        ),
    ),
    sources=("def echo(text=''): return text",),
    functions=("echo",),
)


@dataclass(frozen=True, slots=True)
class Exact:
    expected: str

    def score(self, answer: str) -> Score:
        return Score(float(answer == self.expected), {"exact": float(answer == self.expected)})


def task(name: str) -> Task:
    """Return a task whose answer is `yes`."""
    return Task(name, "scripted", "train", f"What is {name}?", TOOLS, Exact("yes"))


class ScriptedHost(SessionHost):
    """Every call answers with `answer`, after `delay_s`; opening fails with `refusal`."""

    def __init__(self) -> None:
        self.opened: list[OpenItem] = []
        self.open_ids: set[str] = set()
        self.answer = ToolAnswer(status=AnswerStatus.OK, text="fine", seconds=0.0)
        self.refusal: WireError | None = None
        self.delay_s = 0.0
        self._tool_sets: dict[str, ToolSet] = {}

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.open_ids.clear()

    def add_tool_sets(self, tool_sets: dict[str, ToolSet]) -> None:
        self._tool_sets |= tool_sets

    def unknown_digests(self, items: Sequence[OpenItem]) -> list[str]:
        return sorted({item.digest for item in items} - self._tool_sets.keys())

    async def open_session(self, item: OpenItem) -> OpenedSession:
        assert not self.unknown_digests([item])
        if self.refusal:
            return OpenedSession(error=self.refusal)
        self.opened.append(item)
        session_id = f"session-{len(self.opened)}"
        self.open_ids.add(session_id)
        return OpenedSession(id=session_id, isolation="scripted")

    def knows(self, session_id: str) -> bool:
        return session_id in self.open_ids

    async def call(self, index: int, item: CallItem) -> CallResult:
        if item.session not in self.open_ids:
            error = WireError(kind="unknown_session", message="gone")
            return CallResult(index=index, error=error)
        await asyncio.sleep(self.delay_s)
        return CallResult(index=index, answers=(self.answer,))

    def close(self, session_ids: Sequence[str]) -> int:
        known = self.open_ids & set(session_ids)
        self.open_ids -= known
        return len(known)

    async def health(self) -> Health:
        raise NotImplementedError

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds, for at most 5 s."""
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def serving(host: SessionHost, routers: Sequence[APIRouter]) -> AsyncIterator[str]:
    """Serve the routers over `host` on a free port; yields `host:port`."""
    settings = uvicorn.Config(
        create_app(host, "", routers),
        lifespan="off",
        log_level="error",
        ws="websockets-sansio",
        ws_max_size=2**20,
        timeout_graceful_shutdown=1,
    )
    server = _Server(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await asyncio.wait_for(running, 10)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield
