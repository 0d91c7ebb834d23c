"""The sessions of one tool server: opened on cached tool sets, called, closed when idle."""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass

from envs.config import IsolationLevel, ToolServerConfig
from envs.errors import IsolationError, SandboxError
from envs.sandbox import SandboxPool, SandboxSession
from envs.session_host import SessionObserver
from envs.tool_wire import (
    CallItem,
    CallResult,
    Health,
    OpenedSession,
    OpenItem,
    WireCall,
    WireError,
)
from envs.tools import ToolAnswer, ToolSet

_CACHED_TOOL_SETS = 1_024


@dataclass(slots=True)
class _Entry:
    session: SandboxSession
    used_at: float
    calls_running: int = 0


class ToolHost:
    """The SessionHost that runs tools. All times are the event loop's clock, in seconds."""

    def __init__(
        self,
        config: ToolServerConfig,
        strongest: IsolationLevel = "namespaces",
        observers: Sequence[SessionObserver] = (),
    ) -> None:
        self._config = config
        self._observers = tuple(observers)
        self._sweeper: asyncio.Task[None] | None = None
        self._pool = SandboxPool(config, strongest)
        self._entries: dict[str, _Entry] = {}
        self._opening = 0
        self._running: set[asyncio.Task[ToolAnswer]] = set()
        self._tool_sets: OrderedDict[str, ToolSet] = OrderedDict()

    async def start(self) -> None:
        """Lock the sandbox down, and close idle sessions from now on.

        Raises IsolationError or SandboxError.
        """
        await self._pool.start()
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """End every session and the sandbox."""
        if self._sweeper:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        self.close(list(self._entries))
        await self._pool.close()

    def add_tool_sets(self, tool_sets: dict[str, ToolSet]) -> None:
        """Remember sets by digest; the least recently used of many are forgotten.

        Raises ValueError where content and digest disagree, or where a set is not Python code.
        """
        for digest, tool_set in tool_sets.items():
            if not tool_set.sandboxed:
                raise ValueError(
                    "expected Python sources, found an endpoint or an adaptation; those are served "
                    "where the episodes run, never by a tool server"
                )
            if tool_set.digest != digest:
                raise ValueError(
                    f"expected a tool set with digest {tool_set.digest}, found {digest}"
                )
        self._tool_sets |= tool_sets
        for digest in tool_sets:
            self._tool_sets.move_to_end(digest)
        self.forget_old_tool_sets(max(_CACHED_TOOL_SETS, len(tool_sets)))

    def unknown_digests(self, items: Sequence[OpenItem]) -> list[str]:
        """Return the digests of `items` whose content must be sent (again)."""
        return sorted({item.digest for item in items} - self._tool_sets.keys())

    async def open(self, item: OpenItem) -> OpenedSession:
        """Open a session in the initial state of its tool set."""
        tool_set = self._tool_sets.get(item.digest)
        if tool_set is None:
            message = f"the content of {item.digest} must be sent again"
            return OpenedSession(error=WireError(kind="unknown_tool_set", message=message))
        self._tool_sets.move_to_end(item.digest)
        if len(self._entries) + self._opening >= self._config.max_sessions:
            return _refused(
                f"all {self._config.max_sessions} sessions are in use; close some or wait"
            )
        session = SandboxSession(self._pool, tool_set, item.seed)
        self._opening += 1
        try:
            await session.start()
        except (SandboxError, IsolationError) as error:
            return OpenedSession(error=WireError(kind="sandbox", message=str(error)))
        finally:
            self._opening -= 1
        session_id = secrets.token_hex(12)
        self._entries[session_id] = _Entry(session, _now())
        for observer in self._observers:
            observer.opened(session_id, item, tool_set)
        return OpenedSession(id=session_id, isolation=self._pool.isolation)

    def forget_old_tool_sets(self, keep: int = _CACHED_TOOL_SETS) -> None:
        """Keep the most recently used tool sets only."""
        while len(self._tool_sets) > keep:
            self._tool_sets.popitem(last=False)

    def knows(self, session_id: str) -> bool:
        return session_id in self._entries

    async def call(self, index: int, item: CallItem) -> CallResult:
        """Run the calls of one session in order."""
        entry = self._entries.get(item.session)
        if entry is None:
            return CallResult(index=index, error=unknown_session(item.session))
        answers: list[ToolAnswer] = []
        entry.calls_running += 1
        try:
            for call in item.calls:
                answers.append(await self._run(self._answer(item.session, entry.session, call)))
        finally:
            entry.calls_running -= 1
            entry.used_at = _now()
        return CallResult(index=index, answers=tuple(answers))

    async def _answer(self, session_id: str, session: SandboxSession, call: WireCall) -> ToolAnswer:
        answer = await session.call(call.name, call.arguments)
        for observer in self._observers:
            observer.answered(session_id, call, answer)
        return answer

    async def _run(self, call: Coroutine[None, None, ToolAnswer]) -> ToolAnswer:
        """Finish `call` even when the client hangs up: the session goes on in a known state."""
        task = asyncio.create_task(call)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    def close(self, session_ids: Sequence[str]) -> int:
        """End sessions; return how many of them were open."""
        closed = 0
        for session_id in session_ids:
            entry = self._entries.pop(session_id, None)
            if entry is None:
                continue
            entry.session.close()
            closed += 1
            for observer in self._observers:
                observer.closed(session_id)
        return closed

    async def _sweep(self) -> None:
        """Close idle sessions, for ever; checks four times per idle limit."""
        while True:
            await asyncio.sleep(self._config.session_idle_s / 4)
            oldest = _now() - self._config.session_idle_s
            idle = [
                session_id
                for session_id, entry in self._entries.items()
                if entry.used_at < oldest and not entry.calls_running
            ]
            self.close(idle)

    async def health(self) -> Health:
        """Return the state of the server, after an attempt to replace a dead sandbox."""
        try:
            await self._pool.start()
            status = "ok"
        except (SandboxError, IsolationError):
            status = "failed"
        return Health(
            status=status,
            isolation=self._pool.isolation,
            sessions=len(self._entries),
            max_sessions=self._config.max_sessions,
            idle_children=self._pool.idle,
            tool_sets=len(self._tool_sets),
        )


def unknown_session(session_id: str) -> WireError:
    """Return the error for a session that is closed, expired or of another server."""
    return WireError(
        kind="unknown_session",
        message=f"no session {session_id!r}: it was closed, idle too long, or of another server",
    )


def _refused(message: str) -> OpenedSession:
    return OpenedSession(error=WireError(kind="full", message=message))


def _now() -> float:
    return asyncio.get_running_loop().time()
