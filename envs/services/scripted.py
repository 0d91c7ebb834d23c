"""A tool service that answers from a function: unit tests and demonstrations without a server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from envs.tools import SessionPurpose, ToolAnswer, ToolCall, ToolSet

Answer = Callable[[ToolCall, list[ToolCall]], ToolAnswer]
"""From a call, and the calls made before it in the same session, to its answer."""


@dataclass(slots=True)
class ScriptedSession:
    """Session whose only state is the calls made so far."""

    id: str
    purpose: SessionPurpose
    answer: Answer
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
    """ToolService that keeps every session it opened, for a test to look at."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.sessions: list[ScriptedSession] = []

    async def open(self, tool_set: ToolSet, seed: int, purpose: SessionPurpose) -> ScriptedSession:
        del tool_set, seed
        session = ScriptedSession(f"scripted-{len(self.sessions)}", purpose, self._answer)
        self.sessions.append(session)
        return session

    async def close(self) -> None: ...
