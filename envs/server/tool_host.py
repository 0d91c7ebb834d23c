"""The sessions of one tool server: opened on cached tool sets, called, and closed when idle."""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from envs.config import IsolationLevel, ToolServerConfig
from envs.errors import IsolationError, SandboxError, SandboxFullError
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.server.idle import IdleSweep
from envs.server.session_host import SessionObserver
from envs.server.wire import (
    CallItem,
    CallResult,
    EncodedCall,
    Health,
    OpenedSession,
    OpenItem,
    WireError,
)
from envs.tools import ToolAnswer, ToolSet

_CACHED_TOOL_SETS = 1_024
_RETRY_AFTER_S = 1.0
_STARTS_AT_ONCE = 64
"""Sessions that start at once. More would queue in the sandbox, whose deadline is meant for one
fork and not for a queue.
"""


@dataclass(slots=True)
class _Entry:
    session: SandboxSession
    used_at: float
    calls_running: int = 0


class ToolHost:
    """The SessionHost that runs tools in the sandbox.

    Times are seconds of the event loop's clock.
    """

    def __init__(
        self,
        config: ToolServerConfig,
        strongest: IsolationLevel = "namespaces",
        observers: Sequence[SessionObserver] = (),
    ) -> None:
        self._config = config
        self._observers = tuple(observers)
        self._idle_sweep = IdleSweep(config.session_idle_s, self._last_used, self.close)
        self._pool = SandboxPool(config, strongest)
        self._entries: dict[str, _Entry] = {}
        self._room = asyncio.Semaphore(config.max_sessions)
        self._turns = asyncio.Semaphore(_STARTS_AT_ONCE)
        self._tool_sets: OrderedDict[str, ToolSet] = OrderedDict()
        self._opening = 0
        self._calling = 0
        self._opens_refused = 0
        self._calls_refused = 0
        self._zygote_pids: set[int] = set()

    async def start(self) -> None:
        """Lock the sandbox down, and start to close idle sessions.

        Raises IsolationError or SandboxError.
        """
        await self._pool.start()
        self._note_zygote()
        self._idle_sweep.start()

    async def stop(self) -> None:
        """End every session and the sandbox."""
        await self._idle_sweep.stop()
        self.close(list(self._entries))
        await self._pool.close()

    def add_tool_sets(self, tool_sets: dict[str, ToolSet]) -> None:
        """Cache tool sets by digest; the least recently used ones are dropped if there are many.

        Raises ValueError if a digest does not match its set, or a set is not Python code.
        """
        for digest, tool_set in tool_sets.items():
            check_served(not tool_set.sandboxed)
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

    def forget_old_tool_sets(self, keep: int = _CACHED_TOOL_SETS) -> None:
        """Keep only the `keep` most recently used tool sets."""
        while len(self._tool_sets) > keep:
            self._tool_sets.popitem(last=False)

    async def open_session(self, item: OpenItem) -> OpenedSession:
        """Open a session in the initial state of its tool set, once there is room for it."""
        tool_set = self._tool_sets.get(item.digest)
        if tool_set is None:
            message = f"tool set {item.digest} is not cached here: send its content again"
            return OpenedSession(error=WireError(kind="unknown_tool_set", message=message))
        self._tool_sets.move_to_end(item.digest)
        if self._opening >= self._config.max_opens:
            return self._refuse_open(
                f"{self._opening} sessions are being opened already; try again"
            )
        self._opening += 1
        try:
            if not await _taken(self._room, self._config.open_wait_s):
                return self._refuse_open(
                    f"all {self._config.max_sessions} sessions were in use for "
                    f"{self._config.open_wait_s:g} s; close some or wait"
                )
            return await self._start_session(item, tool_set)
        finally:
            self._opening -= 1

    async def _start_session(self, item: OpenItem, tool_set: ToolSet) -> OpenedSession:
        """Start a session in the room that is reserved for it; release the room if that fails."""
        session = SandboxSession(self._pool, tool_set, item.seed)
        turn = opened = False
        try:
            turn = await _taken(self._turns, self._config.request_timeout_s)
            if not turn:
                return self._refuse_open(f"{self._opening} sessions are being opened; try again")
            await session.start()
            opened = True
        except SandboxFullError as error:
            return self._refuse_open(f"{error}; close sessions or wait")
        except (SandboxError, IsolationError) as error:
            return OpenedSession(error=WireError(kind="sandbox", message=str(error)))
        finally:
            self._note_zygote()
            if turn:
                self._turns.release()
            if not opened:
                self._room.release()
        session_id = secrets.token_hex(12)
        self._entries[session_id] = _Entry(session, _now())
        for observer in self._observers:
            observer.opened(session_id, item, tool_set)
        return OpenedSession(id=session_id, isolation=self._pool.isolation)

    def knows(self, session_id: str) -> bool:
        return session_id in self._entries

    async def call(self, index: int, item: CallItem) -> CallResult:
        """Run the calls of one session in order; SessionHost says what cancelling does."""
        entry = self._entries.get(item.session)
        if entry is None:
            return CallResult(index=index, error=unknown_session(item.session))
        if self._calling + len(item.calls) > self._config.max_calls:
            self._calls_refused += 1
            message = (
                f"{self._calling} calls are running, of {self._config.max_calls} at most; try again"
            )
            return CallResult(index=index, error=_full(message))
        return CallResult(index=index, answers=tuple(await self._run(item, entry)))

    async def _run(self, item: CallItem, entry: _Entry) -> list[ToolAnswer]:
        answers: list[ToolAnswer] = []
        self._calling += len(item.calls)
        entry.calls_running += 1
        try:
            for call in item.calls:
                answers.append(await self._answer(item.session, entry.session, call))
        finally:
            self._calling -= len(item.calls)
            entry.calls_running -= 1
            entry.used_at = _now()
        return answers

    async def _answer(
        self, session_id: str, session: SandboxSession, call: EncodedCall
    ) -> ToolAnswer:
        answer = await session.call(call.name, call.arguments)
        for observer in self._observers:
            observer.answered(session_id, call, answer)
        return answer

    def close(self, session_ids: Sequence[str]) -> int:
        """End sessions; return how many of them were open."""
        closed = 0
        for session_id in session_ids:
            entry = self._entries.pop(session_id, None)
            if entry is None:
                continue
            entry.session.close()
            self._room.release()
            closed += 1
            for observer in self._observers:
                observer.closed(session_id)
        return closed

    def _last_used(self) -> dict[str, float]:
        return {
            name: entry.used_at for name, entry in self._entries.items() if not entry.calls_running
        }

    async def health(self) -> Health:
        """Return the state of the server; first tries to replace a dead sandbox."""
        try:
            await self._pool.start()
            status = "healthy"
        except (SandboxError, IsolationError):
            status = "unhealthy"
        self._note_zygote()
        return Health(
            status=status,
            isolation=self._pool.isolation,
            report=self._pool.report,
            sessions=len(self._entries),
            max_sessions=self._config.max_sessions,
            idle_children=self._pool.idle,
            tool_sets=len(self._tool_sets),
            opens_waiting=self._opening,
            calls_running=self._calling,
            calls_throttled=self._pool.calls_throttled,
            opens_refused=self._opens_refused,
            calls_refused=self._calls_refused,
            zygote_restarts=max(0, len(self._zygote_pids) - 1),
        )

    def _note_zygote(self) -> None:
        if self._pool.zygote_pid:
            self._zygote_pids.add(self._pool.zygote_pid)

    def _refuse_open(self, message: str) -> OpenedSession:
        self._opens_refused += 1
        return OpenedSession(error=_full(message))


def check_served(outside: bool) -> None:
    """Raise ValueError for a tool set whose tools are `outside` of the sandbox."""
    if outside:
        raise ValueError(
            "expected Python sources, found an endpoint or an adaptation: a tool server does not "
            "run those; use them where the episodes run"
        )


def unknown_session(session_id: str) -> WireError:
    """Return the error for a session that was closed, expired or belongs to another server."""
    return WireError(
        kind="unknown_session",
        message=(
            f"no open session {session_id[:80]!r}: it was closed, was idle for too long, or "
            "belongs to another server; open a new one"
        ),
    )


async def _taken(semaphore: asyncio.Semaphore, wait_s: float) -> bool:
    """Acquire the semaphore; return whether that succeeded within `wait_s` seconds."""
    try:
        async with asyncio.timeout(wait_s if semaphore.locked() else None):
            return await semaphore.acquire()
    except TimeoutError:
        return False


def _full(message: str) -> WireError:
    return WireError(kind="full", message=message, retry_after_s=_RETRY_AFTER_S)


def _now() -> float:
    return asyncio.get_running_loop().time()
