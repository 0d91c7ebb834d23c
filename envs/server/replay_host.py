"""The SessionHost that runs no tool: sessions and answers come from recorded traffic."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.server.traffic import RecordedSession, TrafficReader
from envs.server.wire import (
    CallItem,
    CallResult,
    Health,
    OpenedSession,
    OpenItem,
    WireCall,
    WireError,
)
from envs.tools import AnswerStatus, SessionPurpose, ToolAnswer, ToolSet

ISOLATION = "replay"
_MAX_SHOWN = 400

_Key = tuple[str, int, SessionPurpose]


@dataclass(slots=True)
class _Replayed:
    """A session in progress; `difference` is what set it off its record."""

    recorded: RecordedSession
    calls: int = 0
    difference: str = ""


class ReplayHost:
    """Answers bit for bit what was recorded, to the same calls in the same order.

    The n-th session opened on a tool set with a seed and for a purpose is the n-th recorded one; it
    keeps its id. A call that differs from the recorded one, and every one after it in its session,
    is answered with an INFRA_ERROR that says what was recorded and what was asked. Tool sets of any
    kind are accepted, for none is run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reader: TrafficReader | None = None
        self._unopened: dict[_Key, deque[RecordedSession]] = {}
        self._recorded: dict[_Key, int] = {}
        self._open: dict[str, _Replayed] = {}
        self._digests: set[str] = set()

    async def start(self) -> None:
        """Read the record. Raises MissingError where there is none, StoreError for a wrong one."""
        self._reader = TrafficReader(self._folder)
        for session in self._reader.sessions:
            key = (session.digest, session.seed, session.purpose)
            self._unopened.setdefault(key, deque()).append(session)
        self._recorded = {key: len(sessions) for key, sessions in self._unopened.items()}
        self._digests = {session.digest for session in self._reader.sessions}

    async def stop(self) -> None:
        """End every session."""
        self._open.clear()
        if self._reader is not None:
            self._reader.close()

    def add_tool_sets(self, tool_sets: dict[str, ToolSet]) -> None:
        """Remember digests. Raises ValueError where content and digest disagree."""
        for digest, tool_set in tool_sets.items():
            if tool_set.digest != digest:
                raise ValueError(
                    f"expected a tool set with digest {tool_set.digest}, found {digest}"
                )
        self._digests |= tool_sets.keys()

    def unknown_digests(self, items: Sequence[OpenItem]) -> list[str]:
        """Return the digests of `items` that are neither in the record nor were sent."""
        return sorted({item.digest for item in items} - self._digests)

    async def open(self, item: OpenItem) -> OpenedSession:
        """Open the next recorded session like `item`."""
        key = (item.digest, item.seed, item.purpose)
        left = self._unopened.get(key)
        if not left:
            count = self._recorded.get(key, 0)
            message = (
                f"replay: all {count} recorded sessions like this were opened already"
                if count
                else "replay: no such session was recorded"
            )
            where = f"tool set {item.digest}, seed {item.seed}, {item.purpose}"
            error = WireError(kind="not_found", message=f"{message} ({where})")
            return OpenedSession(error=error)
        recorded = left.popleft()
        self._open[recorded.id] = _Replayed(recorded)
        return OpenedSession(id=recorded.id, isolation=ISOLATION)

    def knows(self, session_id: str) -> bool:
        return session_id in self._open

    async def call(self, index: int, item: CallItem) -> CallResult:
        """Answer the calls of one session from its record."""
        session = self._open.get(item.session)
        if session is None:
            message = f"no session {item.session!r}: it was closed, or is not of this replay"
            return CallResult(index=index, error=WireError(kind="unknown_session", message=message))
        answers = tuple(self._answer(session, call) for call in item.calls)
        return CallResult(index=index, answers=answers)

    def close(self, session_ids: Sequence[str]) -> int:
        """End sessions; return how many of them were open."""
        return sum(self._open.pop(name, None) is not None for name in session_ids)

    async def health(self) -> Health:
        """Return the state of the server; `max_sessions` is how many were recorded."""
        return Health(
            status="healthy",
            isolation=ISOLATION,
            sessions=len(self._open),
            max_sessions=sum(self._recorded.values()),
            idle_children=0,
            tool_sets=len(self._digests),
        )

    def _answer(self, session: _Replayed, call: WireCall) -> ToolAnswer:
        assert self._reader is not None, "start comes first"
        recorded, number = session.recorded, session.calls
        session.calls += 1
        if not session.difference:
            if number >= len(recorded.answers):
                session.difference = (
                    f"call {number + 1} of the {recorded.purpose} session {recorded.id}: recorded "
                    f"nothing after {len(recorded.answers)} calls, asked {_shown(call)}"
                )
            else:
                wanted, answer = self._reader.answer(recorded, number)
                if wanted == call:
                    return answer
                session.difference = (
                    f"call {number + 1} of the {recorded.purpose} session {recorded.id}: recorded "
                    f"{_shown(wanted)}, asked {_shown(call)}"
                )
        return ToolAnswer(
            status=AnswerStatus.INFRA_ERROR, text=f"replay: {session.difference}", seconds=0.0
        )


def _shown(call: WireCall) -> str:
    text = f"{call.name} {call.arguments}"
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
