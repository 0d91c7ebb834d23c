"""Answers about runs as a whole: list, overview, metrics, logs, configuration, steering."""

from typing import Literal

from cluster.dashboard.models.shared import Answer, Coverage, Damage

RunState = Literal["running", "finished", "stopped", "failed start", "unreadable"]


class Session(Answer):
    """Who is looking."""

    role: Literal["viewer", "operator"]
    """An operator may also steer runs and write SFT sets."""
    version: str
    """Version of trialrun."""
    demo: bool
    """Whether the shipped recording is shown."""
    can_write: bool
    """Whether this dashboard may write at all: not with `--read-only`, nor in the demo."""


class RunSummary(Answer):
    """A row of the page Runs."""

    id: str
    """Name in addresses of this API."""
    name: str
    """Folder below the directory that was given."""
    kind: str
    """`train`, `sft`, `collect`, `eval`, `teacher`, `unknown`."""
    state: RunState
    paused: bool
    """Whether it is running and starts no episodes, on request."""
    path: str
    created_at: float | None
    """Unix seconds."""
    command: str
    step: int
    steps: int | None
    """Steps that the run is to make; null where none are planned ahead."""
    episodes: int | None
    """Stored episodes; null while the index is being made."""
    success: float | None
    """Of the last step, or of the evaluation."""
    reward: float | None
    """Of the last step."""
    reward_spark: list[float | None]
    """At most 60 values over the steps."""
    workers: int | None
    last_error: str
    """Last error in the log; empty where there is none."""
    updated_at: float | None
    """When a file of the run last changed, in Unix seconds."""
    problems: int
    """Number of entries under `health`."""


class RunList(Answer):
    runs: list[RunSummary]
    roots: list[str]
    """Directories that are searched for runs."""
    studies: list[str]
    """Ids for `/studies/{id}`."""


class Health(Answer):
    """What could not be read of a run, and how far the index is."""

    problems: list[Damage]
    coverage: Coverage
    index_folder: str
    """Folder of the index, which may be deleted at any time."""


class Series(Answer):
    """A metric of a run by step."""

    name: str
    title: str
    unit: str
    meaning: str
    over: str
    """What it is taken over."""
    averaging: str
    steps: list[int]
    values: list[float | None]
    """Null where nothing was measured."""


class MetricsAnswer(Answer):
    run: str
    series: list[Series]


class ChartLine(Answer):
    """One line of a chart: its x is the step."""

    label: str
    steps: list[int]
    values: list[float | None]


class Chart(Answer):
    id: str
    title: str
    unit: str
    """For the y axis; `share` is drawn from 0 to 1."""
    note: str
    """What it is taken over, or why it is empty."""
    lines: list[ChartLine]


class Bottleneck(Answer):
    """What holds the run up, in one sentence, with its denominator and what to try."""

    sentence: str
    part: Literal["rollouts", "learner", "push", "tools", "queue", "balanced", "unknown"]
    share: float | None
    """Share of the time in `of`."""
    of: str
    """Denominator in words, such as `412 s of the last 20 steps`."""
    fix: str
    """What to try: a configuration key or a command."""


class OutcomeCount(Answer):
    outcome: str
    count: int
    share: float


class Overview(Answer):
    """The page Overview: at most 12 charts and one sentence."""

    run: RunSummary
    bottleneck: Bottleneck
    charts: list[Chart]
    outcomes: list[OutcomeCount]
    coverage: Coverage


class LogLine(Answer):
    number: int
    """From 1 in its file."""
    at: float | None
    """Unix seconds; null where the line has no time."""
    text: str
    source: str
    """Run id and file."""
    level: Literal["error", "warning", "info"]


class LogPage(Answer):
    """The newest lines that match, oldest first."""

    lines: list[LogLine]
    more: bool
    """Whether older lines match too."""
    before: int | None
    """Pass as `before` for the page of older lines."""


class ConfigAttempt(Answer):
    """The configuration that some steps were trained with."""

    label: str
    """Such as `steps 1 to 20`."""
    first_step: int
    last_step: int | None
    """Null for the newest."""
    toml: str


class ConfigChange(Answer):
    key: str
    """Dotted."""
    values: list[str | None]
    """As JSON, one per attempt; null where the attempt lacks the key."""


class ConfigAnswer(Answer):
    attempts: list[ConfigAttempt]
    changes: list[ConfigChange]
    """Keys whose value differs between attempts."""
    versions: dict[str, str]
    """Packages that the run was started with."""


class AuditEntry(Answer):
    """A request to a running job, and its answer."""

    at: float
    actor: str
    request: str
    """In words."""
    refused: str
    note: str
    workers: int | None
    completed: bool
    """Whether this says that an accepted request took effect, after its answer."""


class Audit(Answer):
    entries: list[AuditEntry]
    """Newest first."""
    waiting: int
    """Requests that the job has not taken yet."""


class SteerPreview(Answer):
    """What a request would do; nothing is sent."""

    allowed: bool
    sentence: str
    """Such as `2 of 6 workers end their episodes and stop`."""
    reason: str
    """Why it is not allowed; empty otherwise."""


class SteerResult(Answer):
    """The job's answer to a request."""

    accepted: bool
    refused: str
    note: str
    workers: int | None


class StudyCell(Answer):
    arm: str
    setting: str
    run: str | None
    """Run id of the first seed's evaluation, whose episodes the cell opens."""
    runs: list[str]
    accuracy: float | None
    low: float | None
    high: float | None
    seeds: int
    tasks: int
    trial_calls: float | None


class Study(Answer):
    """A study's table: arms by settings."""

    id: str
    path: str
    arms: list[str]
    settings: list[str]
    cells: list[StudyCell]
    unfinished: list[str]
    """Stages without a result."""
    notes: list[str]
