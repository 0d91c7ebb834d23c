"""The SessionHost that runs no tools: sessions and answers come from recorded traffic."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.server.traffic import RecordedSession, TrafficReader
from envs.server.wire import (
    CallItem,
    CallResult,
    EncodedCall,
    Health,
    OpenedSession,
    OpenItem,
    WireError,
)
from envs.tools import AnswerStatus, SessionPurpose, ToolAnswer, ToolSet

ISOLATION = "replay"
_MAX_SHOWN = 400

_Key = tuple[str, int, SessionPurpose]


@dataclass(slots=True)
class _Replayed:
    """A session in progress; `difference` is the first deviation from its record."""

    recorded: RecordedSession
    calls: int = 0
    difference: str = ""


class ReplayHost:
    """Gives the recorded answers, bit for bit, to the same calls in the same order.

    The n-th session opened on a tool set with a seed, for a purpose and by an episode is the n-th
    recorded one, and it keeps its id. If the client or the record names no episode, the episode is
    not compared. A call that differs from the recorded one, and every later call of its session, is
    answered with an INFRA_ERROR that gives the recorded call and the one received. Tool sets of any
    kind are accepted, because none is run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reader: TrafficReader | None = None
        self._unopened: dict[_Key, list[RecordedSession]] = {}
        self._recorded: dict[_Key, int] = {}
        self._open: dict[str, _Replayed] = {}
        self._digests: set[str] = set()

    async def start(self) -> None:
        """Read the record. Raises MissingError if there is none, StoreError if it is not valid."""
        self._reader = TrafficReader(self._folder)
        for session in self._reader.sessions:
            key = (session.digest, session.seed, session.purpose)
            self._unopened.setdefault(key, []).append(session)
        self._recorded = {key: len(sessions) for key, sessions in self._unopened.items()}
        self._digests = {session.digest for session in self._reader.sessions}

    async def stop(self) -> None:
        """End every session."""
        self._open.clear()
        if self._reader is not None:
            self._reader.close()

    def add_tool_sets(self, tool_sets: dict[str, ToolSet]) -> None:
        """Accept these digests. Raises ValueError if a digest does not match its set."""
        for digest, tool_set in tool_sets.items():
            if tool_set.digest != digest:
                raise ValueError(
                    f"expected a tool set with digest {tool_set.digest}, found {digest}"
                )
        self._digests |= tool_sets.keys()

    def unknown_digests(self, items: Sequence[OpenItem]) -> list[str]:
        """Return the digests of `items` that are not in the record and were not sent."""
        return sorted({item.digest for item in items} - self._digests)

    async def open_session(self, item: OpenItem) -> OpenedSession:
        """Open the next recorded session that matches `item`."""
        key = (item.digest, item.seed, item.purpose)
        recorded = _next_session(self._unopened.get(key, []), item.episode)
        if recorded is None:
            count = self._recorded.get(key, 0)
            message = (
                f"replay: none of the {count} recorded sessions like this one is left for it"
                if count
                else "replay: no such session was recorded"
            )
            where = f"tool set {item.digest}, seed {item.seed}, {item.purpose}"
            where += f", episode {item.episode}" if item.episode else ""
            error = WireError(kind="not_found", message=f"{message} ({where})")
            return OpenedSession(error=error)
        self._unopened[key].remove(recorded)
        self._open[recorded.id] = _Replayed(recorded)
        return OpenedSession(id=recorded.id, isolation=ISOLATION)

    def knows(self, session_id: str) -> bool:
        return session_id in self._open

    async def call(self, index: int, item: CallItem) -> CallResult:
        """Answer the calls of one session from its record, in order."""
        session = self._open.get(item.session)
        if session is None:
            message = (
                f"no open session {item.session!r}: it was closed, or belongs to another server; "
                "open a new one"
            )
            return CallResult(index=index, error=WireError(kind="unknown_session", message=message))
        answers = tuple(self._answer(session, call) for call in item.calls)
        return CallResult(index=index, answers=answers)

    def close(self, session_ids: Sequence[str]) -> int:
        """End sessions; return how many of them were open."""
        return sum(self._open.pop(name, None) is not None for name in session_ids)

    async def health(self) -> Health:
        """Return the state of the server; `max_sessions` is the number of recorded sessions."""
        return Health(
            status="healthy",
            isolation=ISOLATION,
            sessions=len(self._open),
            max_sessions=sum(self._recorded.values()),
            idle_children=0,
            tool_sets=len(self._digests),
        )

    def _answer(self, session: _Replayed, call: EncodedCall) -> ToolAnswer:
        assert self._reader is not None, "start comes first"
        recorded, number = session.recorded, session.calls
        session.calls += 1
        if not session.difference:
            if number >= len(recorded.answers):
                session.difference = (
                    f"call {number + 1} of the {recorded.purpose} session {recorded.id}: recorded "
                    f"nothing after {len(recorded.answers)} calls, received {_shown(call)}"
                )
            else:
                wanted, answer = self._reader.answer(recorded, number)
                if wanted == call:
                    return answer
                session.difference = (
                    f"call {number + 1} of the {recorded.purpose} session {recorded.id}: recorded "
                    f"{_shown(wanted)}, received {_shown(call)}"
                )
        return ToolAnswer(
            status=AnswerStatus.INFRA_ERROR, text=f"replay: {session.difference}", seconds=0.0
        )


def _next_session(sessions: Sequence[RecordedSession], episode: str) -> RecordedSession | None:
    """Return the first session of `episode`, else the first for which no episode is known."""
    exact = (session for session in sessions if session.episode == episode)
    unknown = (session for session in sessions if not episode or not session.episode)
    return next(exact, None) or next(unknown, None)


def _shown(call: EncodedCall) -> str:
    text = f"{call.name} {call.arguments}"
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
