"""A tool service that answers from a function, for unit tests and demonstrations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from envs.tools import SessionPurpose, ToolAnswer, ToolCall, ToolSet

Answer = Callable[[ToolCall, list[ToolCall]], ToolAnswer]
"""Maps a call, and the earlier calls of its session, to the answer."""


@dataclass(slots=True)
class ScriptedSession:
    """Session whose only state is the list of calls made so far."""

    id: str
    purpose: SessionPurpose
    answer: Answer
    episode: str = ""
    isolation: str = "scripted"
    server: str = "scripted"
    calls: list[ToolCall] = field(default_factory=list)
    closed: bool = False

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        answers: list[ToolAnswer] = []
        for call in calls:
            answers.append(self.answer(call, self.calls))
            self.calls.append(call)
        return answers

    async def close(self) -> None:
        self.closed = True


class ScriptedTools:
    """ToolService that keeps every session it opened, so that a test can inspect them."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.sessions: list[ScriptedSession] = []

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> ScriptedSession:
        del tool_set, seed
        name = f"scripted-{len(self.sessions)}"
        session = ScriptedSession(name, purpose, self._answer, episode=episode)
        self.sessions.append(session)
        return session

    async def close(self) -> None: ...
