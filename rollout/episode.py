"""The episode: one attempt of the policy at one task. Every part of the system uses this record."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import overload

import numpy as np
from numpy.typing import NDArray

from envs.errors import EpisodeError
from envs.messages import Message
from envs.tasks import Mode
from envs.tools import AnswerStatus, SessionPurpose
from rollout.engine import VersionSpan

ANSWER_PART = "answer"
"""Part of the reward that the scorer gives for the answer, in [0, 1]."""
CORRECT_ABOVE = 0.5
"""An answer is correct where its part of the reward is above this."""
_NUMBERED_GROUP = re.compile(r"(?P<letter>[gt])(?P<number>\d{6,})")


class Phase(IntEnum):
    """Part of the episode that a token belongs to; stored as int8."""

    PROMPT = 0
    TRIAL = 1
    EXPERIENCE = 2
    EXECUTION = 3
    OBSERVATION = 4

    @property
    def sampled(self) -> bool:
        """Whether the policy sampled the tokens of this phase."""
        return self in (Phase.TRIAL, Phase.EXPERIENCE, Phase.EXECUTION)


class Outcome(StrEnum):
    """How an episode ended.

    The policy causes the first three; the infrastructure or the run causes the others.
    `prompt_too_long` is the task's: its prompt leaves no room to answer.
    """

    ANSWERED = "answered"
    TRUNCATED = "truncated"
    POLICY_ERROR = "policy_error"
    INFRA_FAILED = "infra_failed"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    PROMPT_TOO_LONG = "prompt_too_long"

    @property
    def counts(self) -> bool:
        """Whether the episode has a reward and contributes to its group's baseline."""
        return self in (Outcome.ANSWERED, Outcome.TRUNCATED, Outcome.POLICY_ERROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One tool call and its result; `arguments` is JSON text, times are in seconds."""

    name: str
    arguments: str
    status: AnswerStatus
    result: str
    seconds: float
    cpu_seconds: float
    purpose: SessionPurpose


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One completion of the policy: tokens `[start, end)`, their text, and the resulting calls."""

    phase: Phase
    start: int
    end: int
    text: str
    finish_reason: str
    policy_error: str
    """A value of PolicyErrorKind; empty if the turn was valid."""
    calls: tuple[CallRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Durations in seconds; `started_at` is the wall clock at the start (Unix seconds)."""

    started_at: float
    wall_s: float
    queue_s: float
    generate_s: float
    tool_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters of the distribution that the stored logprobs refer to."""

    temperature: float
    top_p: float
    top_k: int
    seed: int


class RolloutKind(StrEnum):
    """What a scheduled episode is for."""

    TRAIN = "train"
    COLLECT = "collect"
    """Demonstrations: of a scripted teacher, of an endpoint, or of the policy itself."""
    EVAL = "eval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A scheduled episode: which task, in which group, and which attempt it is."""

    run: str
    episode: str
    kind: RolloutKind
    group: str
    """Name of the group; unique in its run."""
    group_number: int
    """Position of the group's task in the sequence of tasks of its kind, from 0; -1 is unknown."""
    task: str
    sample_index: int
    attempt: int
    seed: int


def kind_and_number(group: str) -> tuple[RolloutKind, int]:
    """Return the kind and number of a group that was stored by its name alone.

    Ledgers and episodes of older run directories have no other record of them. Evaluations name
    their groups by task: their number is -1.
    """
    found = _NUMBERED_GROUP.fullmatch(group)
    if found is None:
        return RolloutKind.EVAL, -1
    kind = RolloutKind.TRAIN if found["letter"] == "g" else RolloutKind.COLLECT
    return kind, int(found["number"])


@overload
def is_correct(answer: float) -> bool: ...
@overload
def is_correct(answer: NDArray[np.float64]) -> NDArray[np.bool_]: ...
def is_correct(answer: float | NDArray[np.float64]) -> bool | NDArray[np.bool_]:
    """Whether an episode is correct, given the `answer` part of its reward (`ANSWER_PART`).

    That part is the scorer's, in [0, 1]. Penalties and costs, which are other parts of the reward,
    do not make an answer wrong. NaN, the answer of an episode without a reward, is not correct.
    """
    return answer > CORRECT_ABOVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A finished episode. Token arrays have one length T and were only ever appended to.

    `logprobs_T` is NaN where no engine sampled the token (prompt, observation, teacher text).
    `spans` cover the sampled tokens: from index `start`, tokens were sampled with `version`.
    Raises EpisodeError for arrays of different lengths, or a reward that does not fit the outcome.
    """

    lease: Lease
    environment: str
    split: str
    mode: Mode
    outcome: Outcome
    error: str
    reward: float | None
    reward_parts: Mapping[str, float]
    answer: str
    question: str
    tags: Mapping[str, str]
    token_ids_T: tuple[int, ...]
    phases_T: tuple[int, ...]
    logprobs_T: tuple[float, ...]
    spans: tuple[VersionSpan, ...]
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    sampling: Sampling
    timings: Timings
    source: str
    """Source of the turns: `policy`, or the name of a teacher."""
    worker: str
    tool_server: str
    isolation: str
    score_notes: Mapping[str, str] = field(default_factory=dict)
    """What scorers say about the score, by their names: a judge's reason, where states differ."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Additional named numbers for tables, for example `trial_calls`."""

    def __post_init__(self) -> None:
        lengths = {len(self.token_ids_T), len(self.phases_T), len(self.logprobs_T)}
        if len(lengths) != 1:
            raise EpisodeError(
                "expected token ids, phases and logprobs of the same length, found "
                f"{len(self.token_ids_T)}, {len(self.phases_T)} and {len(self.logprobs_T)}"
            )
        if self.outcome.counts != (self.reward is not None):
            raise EpisodeError(
                f"expected a reward if and only if the outcome counts, found {self.reward} "
                f"with {self.outcome}"
            )

    @property
    def loss_mask_T(self) -> tuple[bool, ...]:
        """True for every token that the policy sampled."""
        sampled = {int(phase) for phase in Phase if phase.sampled}
        return tuple(phase in sampled for phase in self.phases_T)

    @property
    def calls(self) -> tuple[CallRecord, ...]:
        """All tool calls, in order."""
        return tuple(call for turn in self.turns for call in turn.calls)

    @property
    def oldest_version(self) -> int:
        """Oldest policy version among the sampled tokens; -1 if nothing was sampled."""
        return min((span.version for span in self.spans), default=-1)
