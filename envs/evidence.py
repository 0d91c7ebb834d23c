"""What a scorer may look at: the answer, the calls, and the world as the policy left it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from envs.errors import ScoringError
from envs.tools import (
    STATE_CALL,
    AnswerStatus,
    JsonObject,
    ToolAnswer,
    ToolCall,
    ToolService,
    ToolSession,
    ToolSet,
)

READ_STATE = ToolCall(name=STATE_CALL, arguments={})
_UNREADABLE = "the state of the tools"
"""Start of the reasons, which no JSON text has."""
_DEEPEST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeCall:
    """A call of the execution phase that reached its tool, in the tool's own names."""

    name: str
    arguments: JsonObject
    status: AnswerStatus
    result: str
    user_turn: int = 0
    """How many messages of the user came before it, beside the question."""

    def to_json(self) -> JsonObject:
        """Return the call as scorers in Python and judges see it."""
        return {
            "name": self.name,
            "arguments": self.arguments,
            "status": self.status.value,
            "result": self.result,
            "user_turn": self.user_turn,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A finished episode as its scorer sees it. Nothing here comes from trials.

    `execution` is the session in which the policy acted, and `tool_set` its tools, both without
    any perturbation. Sessions that a scorer opens through `tools` have the purpose `scoring`.
    """

    question: str
    answers: tuple[str, ...]
    """One per message of the user, the question included."""
    calls: tuple[MadeCall, ...]
    states: tuple[str, ...]
    """State as JSON text when each answer was given; empty if the scorer does not read it."""
    tools: ToolService
    tool_set: ToolSet
    execution: ToolSession
    seed: int
    episode: str

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.answers[-1]

    @property
    def state(self) -> JsonValue:
        """The final state. Raises ScoringError if it cannot be read."""
        if self.unreadable:
            raise ScoringError(self.unreadable)
        return json.loads(self.states[-1])

    @property
    def unreadable(self) -> str:
        """Why a state cannot be read, empty if each can: a scorer that needs it then gives 0.

        No failure of the scoring, which would have the episode run again: what a policy does to
        its tools, or they do themselves, must not buy a second attempt.
        """
        return next((state for state in self.states if state.startswith(_UNREADABLE)), "")

    async def run(self, tool_set: ToolSet, calls: Sequence[ToolCall]) -> tuple[ToolAnswer, ...]:
        """Return the answers of `tool_set` to `calls` in a session of its own.

        Raises ToolServerError, SandboxError, DeadlineError; ScoringError if the session fails.
        """
        session = await self.tools.open_session(tool_set, self.seed, "scoring", self.episode)
        try:
            answers = tuple(await session.call(calls))
        finally:
            await session.close()
        for call, answer in zip(calls, answers, strict=True):
            if answer.status is AnswerStatus.INFRA_ERROR:
                raise ScoringError(f"{call.name}: {answer.text}")
        return answers


async def read_state(session: ToolSession) -> str:
    """Return the state of `session` as JSON text, or why it cannot be read (`Evidence.unreadable`).

    Raises ToolServerError, SandboxError, DeadlineError; ScoringError for a fault of the machine.
    """
    [answer] = await session.call([READ_STATE])
    try:
        return state_of(answer)
    except ScoringError as error:
        if answer.status is AnswerStatus.INFRA_ERROR:
            raise
        return str(error)


def state_of(answer: ToolAnswer) -> str:
    """Return the state that `answer` holds. Raises ScoringError if it holds none."""
    if answer.status is not AnswerStatus.OK:
        raise ScoringError(f"{_UNREADABLE} cannot be read: {answer.text}")
    if answer.truncated:
        raise ScoringError(
            f"{_UNREADABLE} is too long to be compared: give their class a method "
            "`_state` that returns what counts"
        )
    if not _can_be_walked(answer.text):
        raise ScoringError(f"{_UNREADABLE} is no JSON, or nested more than {_DEEPEST} deep")
    return answer.text


def _can_be_walked(text: str) -> bool:
    """Whether a text is JSON, nested so little that whoever looks at it needs little stack.

    What tools keep is written so; a tool that forges its process's reply may write anything.
    """
    try:
        level = [json.loads(text)]
    except (ValueError, RecursionError):
        return False
    for _ in range(_DEEPEST):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return True
    return False
