"""The episode: one attempt of the policy at one task, as every part of the system reads and writes
it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Literal

from envs.errors import EpisodeError
from envs.messages import Message
from envs.tools import AnswerStatus
from rollout.engine import VersionSpan

Mode = Literal["direct", "trial", "free"]


class Phase(IntEnum):
    """What a token belongs to; stored as int8."""

    PROMPT = 0
    TRIAL = 1
    EXPERIENCE = 2
    EXECUTION = 3
    OBSERVATION = 4

    @property
    def sampled(self) -> bool:
        """Whether tokens of this phase are the policy's own."""
        return self in (Phase.TRIAL, Phase.EXPERIENCE, Phase.EXECUTION)


class Outcome(StrEnum):
    """How an episode ended; the first three are the policy's own, the others the world's."""

    ANSWERED = "answered"
    TRUNCATED = "truncated"
    POLICY_ERROR = "policy_error"
    INFRA_FAILED = "infra_failed"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"

    @property
    def counts(self) -> bool:
        """Whether the episode has a reward and takes part in its group's baseline."""
        return self in (Outcome.ANSWERED, Outcome.TRUNCATED, Outcome.POLICY_ERROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One tool call as it happened; `arguments` is JSON text."""

    name: str
    arguments: str
    status: AnswerStatus
    result: str
    seconds: float
    cpu_seconds: float
    purpose: Literal["trial", "execution"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One completion of the policy: tokens `[start, end)`, its text, and what came of it."""

    phase: Phase
    start: int
    end: int
    text: str
    finish_reason: str
    policy_error: str
    """A PolicyErrorKind, or empty."""
    calls: tuple[CallRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds spent, and the wall clock at the start (Unix seconds)."""

    started_at: float
    wall_s: float
    queue_s: float
    generate_s: float
    tool_s: float


@dataclass(frozen=True, slots=True)
class Sampling:
    """The distribution that behaviour logprobs refer to."""

    temperature: float
    top_p: float
    top_k: int
    seed: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The order to run one episode: which task, in which group, and which attempt it is."""

    run: str
    episode: str
    group: str
    task: str
    sample_index: int
    attempt: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A finished episode. Token arrays share one length T; they only ever grew at the end.

    `logprobs_T` is NaN wherever no engine sampled the token (prompt, observation, teacher text);
    `spans` cover sampled tokens: from index `start` on, tokens carry `version`.
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
    """Who acted: `policy`, or the name of a teacher."""
    worker: str
    tool_server: str
    isolation: str
    extra: Mapping[str, float] = field(default_factory=dict)
    """Named numbers for tables, such as `trial_calls`."""

    def __post_init__(self) -> None:
        lengths = {len(self.token_ids_T), len(self.phases_T), len(self.logprobs_T)}
        if len(lengths) != 1:
            raise EpisodeError(
                "expected token ids, phases and logprobs of one length, found "
                f"{len(self.token_ids_T)}, {len(self.phases_T)} and {len(self.logprobs_T)}"
            )
        if self.outcome.counts != (self.reward is not None):
            raise EpisodeError(
                f"expected a reward exactly when the outcome counts, found {self.reward} "
                f"with {self.outcome}"
            )

    @property
    def loss_mask_T(self) -> tuple[bool, ...]:
        """True on the policy's own tokens."""
        sampled = {int(phase) for phase in Phase if phase.sampled}
        return tuple(phase in sampled for phase in self.phases_T)

    @property
    def calls(self) -> tuple[CallRecord, ...]:
        """Every tool call, in order."""
        return tuple(call for turn in self.turns for call in turn.calls)

    @property
    def oldest_version(self) -> int:
        """Policy version of the oldest sampled token; -1 when nothing was sampled."""
        return min((span.version for span in self.spans), default=-1)
