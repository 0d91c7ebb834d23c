"""Answers with figures over many episodes: tools, ledger, fleet, evaluation, comparison."""

from typing import Literal

from cluster.dashboard.models.shared import Answer, Coverage


class ToolRow(Answer):
    """Figures of a tool, or of all tools of an environment."""

    tool: str
    environment: str
    phase: str
    """`trial`, `execution`, or `all`."""
    episodes: int
    calls: int
    p50_s: float | None
    p99_s: float | None
    errors: int
    error_rate: float | None
    """Tool errors over calls."""
    timeouts: int
    timeout_rate: float | None
    infra: int
    infra_share: float | None
    """Calls that could not be run, over calls."""
    mean_result: float | None
    """Characters of a result."""
    filter: str
    """Filter that lists the episodes with such calls."""


class ToolFigures(Answer):
    by: Literal["tool", "environment"]
    rows: list[ToolRow]
    coverage: Coverage


class CallRow(Answer):
    uid: int
    episode: str
    attempt: int
    turn: int
    number: int
    tool: str
    status: str
    phase: str
    seconds: float
    cpu_seconds: float
    arguments: str
    """At most 200 characters."""
    result: str
    """At most 200 characters."""


class CallPage(Answer):
    rows: list[CallRow]
    next: str | None
    total: int


class LedgerRow(Answer):
    """A group, or part of it, that was dropped or retried."""

    number: int
    """Line of the ledger."""
    event: Literal["dropped", "re_leased", "rolled_back"]
    reason: str
    """A reason of the ledger, or why an episode was leased again."""
    meaning: str
    group: str
    task: str
    episodes: list[str]
    step: int | None
    at: float | None
    """When the last of its stored episodes ended, in Unix seconds; null where none is stored."""


class LedgerPage(Answer):
    rows: list[LedgerRow]
    """Newest first."""
    next: str | None
    total: int


class ReasonSeries(Answer):
    reason: str
    meaning: str
    total: int
    counts: list[int]
    """Episodes, by bucket."""


class LedgerSummary(Answer):
    """Episodes by state, and dropped or retried ones by reason over the steps."""

    states: dict[str, int]
    edges: list[int]
    """First step of each bucket."""
    reasons: list[ReasonSeries]
    retries: int
    violations: list[str]
    """Episodes that the ledger leaves open although nothing writes to the run."""


class FleetCell(Answer):
    """A worker in a slice of time: shares of its episodes' time; the rest is idle."""

    worker: str
    bucket: int
    episodes: int
    """Episodes that ran in the slice."""
    running: float
    """Mean number of episodes that ran at the same time."""
    generate: float
    tool: float
    queue: float
    version: int | None
    """Newest policy version among the tokens it sampled."""
    lag: int | None
    """Versions behind the newest of all workers."""


class PushMark(Answer):
    """A weight push, as the metrics of its step recorded it."""

    step: int
    at: float | None
    """When the first episode with its version started; null where there is none."""
    seconds: float | None


class Fleet(Answer):
    """Worker by time."""

    start: float
    end: float
    bucket_s: float
    workers: list[str]
    cells: list[FleetCell]
    pushes: list[PushMark]
    alive: int | None
    losses: int | None
    note: str
    """What the figures leave out."""


class Estimate(Answer):
    value: float | None
    stderr: float | None
    low: float | None
    high: float | None
    clusters: int


class EvalTableRow(Answer):
    by: str
    value: str
    tasks: int
    samples: int
    lost: int
    pass_at_k: dict[str, Estimate]
    majority: Estimate | None
    trial_calls: Estimate
    tool_error_rate: Estimate
    malformed_rate: Estimate
    tokens: Estimate
    filter: str


class Evaluation(Answer):
    """An evaluation's tables; computed from the stored episodes, complete or not."""

    run: str
    complete: bool
    """Whether the run wrote its result."""
    rows: list[EvalTableRow]
    outcomes: dict[str, int]
    failures: dict[str, int]
    notes: list[str]


class PairedRow(Answer):
    by: str
    value: str
    first: str
    second: str
    tasks: int
    first_score: float
    second_score: float
    difference: float
    stderr: float | None
    low: float | None
    high: float | None
    p: float
    p_holm: float


class Flip(Answer):
    """A task on which two sides differ, with an episode of each."""

    task: str
    question: str
    first_score: float
    second_score: float
    first_episode: str
    second_episode: str
    verdict: Literal["won", "lost"]
    """By the second side."""


class CompareSide(Answer):
    run: str
    name: str
    tasks: int
    samples: int
    score: Estimate


class Compare(Answer):
    sides: list[CompareSide]
    shared: int
    rows: list[PairedRow]
    flips: list[Flip]
    """Between the first two sides: those of the largest change first."""
    won: int
    lost: int
    tied: int
    notes: list[str]


class SftSet(Answer):
    """What was written for `trialrun sft --from`."""

    path: str
    episodes: int
    left_out: dict[str, int]
    """Matching episodes that are no demonstration, by reason."""
    command: str
    """The command that trains on it."""
