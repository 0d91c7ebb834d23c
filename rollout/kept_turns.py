"""Finished turns of an episode in progress, on their way out of the worker that may die.

A worker reports after each turn what the turn has added. Put together, the parts are all that
another worker needs to go on: tokens, logprobs and versions as they were sampled, and the calls
that bring tool sessions back to their state.
"""

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from envs.errors import InfraError
from envs.messages import Message
from envs.tools import AnswerStatus, SessionPurpose, ToolCall
from rollout.engine import VersionSpan
from rollout.episode import CallRecord, Phase, Turn
from rollout.observation import Cutter
from rollout.phase_tools import PhaseTools
from rollout.trajectory import Trajectory, VisibleFrom

Number = TypeVar("Number", int, float)


class TurnsNotKept(InfraError):
    """The finished turns of an episode cannot be continued, so that it must start anew."""


def _by_phase(zero: Number) -> "dict[SessionPurpose, Number]":
    return {"trial": zero, "execution": zero}


@dataclass(slots=True)
class Standing:
    """How far an episode is in its phases and budgets."""

    stage: SessionPurpose
    used: dict[SessionPurpose, int] = field(default_factory=lambda: _by_phase(0))
    """Calls by phase."""
    made: dict[SessionPurpose, int] = field(default_factory=lambda: _by_phase(0))
    """Turns by phase."""
    seconds: dict[SessionPurpose, float] = field(default_factory=lambda: _by_phase(0.0))
    """Seconds by phase, without those of tools that the policy called."""
    tool_seconds: dict[SessionPurpose, float] = field(default_factory=lambda: _by_phase(0.0))
    """Seconds of these tools by phase."""
    faults: int = 0
    """Turns that were not valid."""
    visible: VisibleFrom = field(default_factory=VisibleFrom)
    answers: list[str] = field(default_factory=list)
    """Answers so far."""
    said: list[str] = field(default_factory=list)
    """Messages of the user after the question."""
    said_at: list[int] = field(default_factory=list)
    """Number of turns before each of them."""
    states: list[str] = field(default_factory=list)
    """State of the tools at each answer, if the scorer reads it."""

    def copy(self) -> "Standing":
        """Return one that changes alone."""
        by_phase = ("used", "made", "seconds", "tool_seconds")
        lists = ("answers", "said", "said_at", "states")
        own = {name: dict(getattr(self, name)) for name in by_phase}
        return replace(self, **own, **{name: list(getattr(self, name)) for name in lists})


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Where an episode stood at the end of a turn."""

    at: Standing = field(default_factory=lambda: Standing("trial"))
    tokens: int = 0
    spans: int = 0
    turns: int = 0
    messages: int = 0
    cut_observations: int = 0
    cut_characters: int = 0
    queue_s: float = 0.0
    generate_s: float = 0.0
    tool_s: float = 0.0

    @classmethod
    def of(cls, trajectory: Trajectory, at: Standing, cutter: Cutter) -> "Mark":
        """Return where an episode stands now."""
        return cls(
            at=at.copy(),
            tokens=len(trajectory.token_ids_T),
            spans=len(trajectory.spans),
            turns=len(trajectory.turns),
            messages=len(trajectory.messages),
            cut_observations=cutter.observations,
            cut_characters=cutter.characters,
            queue_s=trajectory.queue_s,
            generate_s=trajectory.generate_s,
            tool_s=trajectory.tool_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnsPart:
    """What the turns between two marks have added."""

    episode: str
    attempt: int
    before: Mark
    after: Mark
    token_ids: NDArray[np.int32]
    phases: NDArray[np.int8]
    logprobs: NDArray[np.float32]
    spans: Sequence[VersionSpan]
    turns: Sequence[Turn]
    messages: Sequence[Message]

    @classmethod
    def between(
        cls, trajectory: Trajectory, before: Mark, after: Mark, episode: str, attempt: int
    ) -> "TurnsPart":
        """Return what `trajectory` has between two marks."""
        tokens = slice(before.tokens, after.tokens)
        return cls(
            episode=episode,
            attempt=attempt,
            before=before,
            after=after,
            token_ids=np.asarray(trajectory.token_ids_T[tokens], np.int32),
            phases=np.asarray(trajectory.phases_T[tokens], np.int8),
            logprobs=np.asarray(trajectory.logprobs_T[tokens], np.float32),
            spans=tuple(trajectory.spans[before.spans : after.spans]),
            turns=tuple(trajectory.turns[before.turns : after.turns]),
            messages=tuple(trajectory.messages[before.messages : after.messages]),
        )

    def sealed(self) -> "SealedPart":
        """Return it as bytes, which the driver need not read while all goes well."""
        return SealedPart(
            episode=self.episode,
            attempt=self.attempt,
            before=(self.before.tokens, self.before.turns),
            after=(self.after.tokens, self.after.turns),
            content=pickle.dumps(self, pickle.HIGHEST_PROTOCOL),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedPart:
    """A TurnsPart as bytes, between its numbers of tokens and turns before and after."""

    episode: str
    attempt: int
    before: tuple[int, int]
    after: tuple[int, int]
    content: bytes

    def opened(self) -> TurnsPart:
        """Return the part; it comes from a worker of the same run."""
        part = pickle.loads(self.content)
        assert isinstance(part, TurnsPart)
        return part


class KeptTurns:
    """The parts of one attempt at an episode, in order."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self._parts: list[TurnsPart] = []

    @property
    def mark(self) -> Mark:
        """Where the episode stood at the end of the last part."""
        return self._parts[-1].after if self._parts else Mark()

    @property
    def turns(self) -> list[Turn]:
        """The finished turns."""
        return [turn for part in self._parts for turn in part.turns]

    def add(self, part: TurnsPart) -> bool:
        """Add the next part; return False, and change nothing, where one before it is missing."""
        if part.before.tokens != self.mark.tokens or part.before.turns != self.mark.turns:
            return False
        self._parts.append(part)
        return True

    def fill(self, trajectory: Trajectory, cutter: Cutter) -> None:
        """Put everything into a new trajectory and cutter, as it was."""
        for part in self._parts:
            trajectory.token_ids_T.extend(part.token_ids.tolist())
            trajectory.phases_T.extend(part.phases.tolist())
            trajectory.logprobs_T.extend(part.logprobs.tolist())
            trajectory.spans.extend(part.spans)
            trajectory.turns.extend(part.turns)
            trajectory.messages.extend(part.messages)
        mark = self.mark
        trajectory.queue_s, trajectory.generate_s = mark.queue_s, mark.generate_s
        trajectory.tool_s = mark.tool_s
        cutter.observations, cutter.characters = mark.cut_observations, mark.cut_characters

    def calls(self, purpose: SessionPurpose) -> list[CallRecord]:
        """Return the calls whose effects a session for `purpose` has: all of execution, and of the
        trials those since the last turn of execution, because each trial phase starts afresh.
        """
        turns = self.turns
        if purpose == "trial":
            outside = [n for n, turn in enumerate(turns) if turn.phase is Phase.EXECUTION]
            turns = turns[outside[-1] + 1 :] if outside else turns
        return [call for turn in turns for call in turn.calls if call.purpose == purpose]


def after_resets(calls: Sequence[CallRecord], *, resets: bool) -> list[CallRecord]:
    """Return the calls that count if a call that timed out `resets` its session."""
    timeouts = [n for n, call in enumerate(calls) if call.status is AnswerStatus.TIMEOUT]
    return list(calls[timeouts[-1] + 1 :] if resets and timeouts else calls)


async def replay(kept: KeptTurns, tools: PhaseTools, *, shared: bool) -> str:
    """Bring the sessions of `tools` to the state that they had at the end of the `kept` turns;
    return how an answer differs from the recorded one, empty if none does.

    With `shared`, trials and execution have one session. Raises ToolServerError, SandboxError,
    DeadlineError.
    """
    resets = tools.timeouts_reset
    if shared:
        every = [call for turn in kept.turns for call in turn.calls]
        return await tools.replay("execution", _told(after_resets(every, resets=resets)))
    executed = after_resets(kept.calls("execution"), resets=resets)
    difference = await tools.replay("execution", _told(executed))
    if difference or kept.mark.at.stage != "trial":
        return difference
    await tools.catch_up()
    tried = after_resets(kept.calls("trial"), resets=resets)
    return await tools.replay("trial", _told(tried))


def _told(records: Sequence[CallRecord]) -> list[tuple[ToolCall, str, str]]:
    """Return each recorded call with the status and the text of its answer."""
    return [
        (ToolCall(name=r.name, arguments=json.loads(r.arguments)), r.status.value, r.result)
        for r in records
    ]
