"""The episode: one attempt of the policy at one task. Every part of the system uses this record."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from envs.errors import EpisodeError
from envs.messages import Message
from envs.tasks import Mode
from envs.tools import AnswerStatus, SessionPurpose
from rollout.engine import VersionSpan


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
    """

    ANSWERED = "answered"
    TRUNCATED = "truncated"
    POLICY_ERROR = "policy_error"
    INFRA_FAILED = "infra_failed"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"

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
