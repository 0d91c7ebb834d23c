"""Answers about many episodes: table, facets, histograms, groups, search."""

from typing import Literal

from cluster.dashboard.models.shared import Answer, Coverage

EpisodeState = Literal["leased", "stored", "finished", "trained", "dropped", "retried"]


class EpisodeRow(Answer):
    """A row of the table. Fields below `details` are null until the details are read."""

    uid: int
    """Position in the index of this dashboard; not stable between indexes, `episode` is."""
    episode: str
    attempt: int
    group: str
    task: str
    sample_index: int
    environment: str
    split: str
    mode: str
    source: str
    outcome: str
    reward: float | None
    oldest_version: int
    """-1 if nothing was sampled."""
    started_at: float
    """Unix seconds."""
    wall_s: float
    tokens: int
    state: EpisodeState
    """In the ledger; `stored` where the ledger does not know the episode."""
    reason: str
    """Why it was dropped or retried; empty otherwise."""
    step: int | None
    """Step that trained on it, or left it out."""
    staleness: int | None
    """Versions by which its oldest token lagged behind at that step."""
    advantage: float | None
    trial_advantage: float | None
    # details
    turns: int | None
    trial_calls: int | None
    execution_calls: int | None
    tool_errors: int | None
    """Calls that ended in a tool error or a timeout."""
    infra_errors: int | None
    sampled_tokens: int | None
    generate_s: float | None
    tool_s: float | None
    queue_s: float | None
    worker: str | None
    answer: str | None
    """At most 200 characters."""
    question: str | None
    """At most 200 characters."""
    error: str | None
    flags: list[str] | None
    """Of `garbled`, `loop`, `truncated`, `answer_in_tool`, `trial_touched_state`."""


class EpisodePage(Answer):
    """A page of the table, pinned to a snapshot: episodes stored later are on no page of it."""

    rows: list[EpisodeRow]
    next: str | None
    """Pass as `cursor` for the next page; null after the last."""
    total: int
    """Episodes in the snapshot that match."""
    snapshot: int
    """Pass as `snapshot` to facets and histograms to count the same episodes."""
    newer: int
    """Episodes that match and were stored after the snapshot: offer them, do not move rows."""
    coverage: Coverage


class OpenEpisode(Answer):
    """An episode that is in progress."""

    episode: str
    attempt: int
    group: str
    task: str
    sample_index: int
    why: str
    """Why it was leased again; empty for a first attempt."""


class OpenEpisodes(Answer):
    episodes: list[OpenEpisode]
    """The newest."""
    total: int


class FacetValue(Answer):
    value: str
    count: int


class Facet(Answer):
    field: str
    title: str
    values: list[FacetValue]
    """The most frequent."""
    others: int
    """Episodes with a value that is not listed."""
    quote: bool = True
    """Whether a filter writes the value in quotes: `field="value"`."""


class Facets(Answer):
    """Counts over the episodes that match the filter."""

    facets: list[Facet]
    total: int
    coverage: Coverage


class Histogram(Answer):
    field: str
    edges: list[float]
    """One more than counts."""
    counts: list[int]
    missing: int
    """Episodes that match and have no such number."""


class FieldHelp(Answer):
    """A field or function of the filter language."""

    name: str
    type: Literal["number", "text", "flag"]
    example: str
    meaning: str
    sortable: bool
    details: bool
    """Whether it is known only after the details are read."""


class FilterLanguage(Answer):
    fields: list[FieldHelp]
    operators: list[str]
    examples: list[str]


class FilterCheck(Answer):
    """A filter that can be run."""

    filter: str
    needs_details: bool
    total: int


class FailureRow(Answer):
    """Episodes that failed alike."""

    what: str
    """`outcome`, or the state that the reason led to: `dropped`, `retried`."""
    reason: str
    """The outcome, or the ledger's reason."""
    episodes: int
    error: str
    """Error of the example; empty where there is none. Errors that differ in numbers are one."""
    example: str
    """Newest such episode."""
    filter: str
    """Filter that lists them, whatever their error."""


class Failures(Answer):
    """What failed, by reason."""

    rows: list[FailureRow]
    """The most frequent, outcomes first."""
    total: int
    """Episodes that match the filter."""


class LanePiece(Answer):
    """A turn in a lane."""

    turn: int
    """From 0."""
    phase: str
    tokens: int
    calls: int
    errors: int
    policy_error: str


class Lane(Answer):
    """One sibling: its turns in order, trials before execution."""

    row: EpisodeRow
    pieces: list[LanePiece]
    reward_parts: dict[str, float | None]


class Group(Answer):
    """The episodes of one task that are compared with each other."""

    group: str
    task: str
    question: str
    lanes: list[Lane]
    open: list[OpenEpisode]
    zero_variance: bool
    """All rewards are equal, so no episode has an advantage."""
    reward_mean: float | None
    reward_std: float | None
    baseline_note: str
    """Why advantages are missing; empty where they are there."""


class GroupRow(Answer):
    group: str
    task: str
    episodes: int
    reward_mean: float | None
    reward_min: float | None
    reward_max: float | None
    zero_variance: bool
    trained: int
    dropped: int
    step: int | None
    reason: str


class GroupPage(Answer):
    rows: list[GroupRow]
    next: str | None
    total: int


class SearchHit(Answer):
    """A line of the search's answer (NDJSON): a text that contains what was looked for."""

    type: Literal["hit"] = "hit"
    uid: int
    episode: str
    attempt: int
    group: str
    outcome: str
    reward: float | None
    part: str
    """Which text, as `/episode/text` takes it: `turns/3/text`, `turns/3/calls/0/result`, ..."""
    before: str
    match: str
    after: str


class SearchProgress(Answer):
    """A line of the search's answer: how far it is."""

    type: Literal["progress", "end"]
    episodes: int
    """Looked at."""
    of: int
    hits: int
    stopped: str = ""
    """At the end: why it ended early; empty if everything was looked at."""
