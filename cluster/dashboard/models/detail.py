"""Answers about one episode, and about the difference of siblings."""

from typing import Literal

from cluster.dashboard.models.episodes import EpisodeRow
from cluster.dashboard.models.shared import Answer


class Text(Answer):
    """A text of a model or a tool, cut after some characters; show it as text, never as markup."""

    text: str
    length: int
    """Characters in full; if it is more than the text has, ask `/episode/text` for the rest."""
    part: str
    """Name for `/episode/text`."""


class Call(Answer):
    """A tool call and its result."""

    number: int
    """In its turn, from 0."""
    name: str
    arguments: Text
    """JSON text as the policy wrote it; it may be no valid JSON."""
    status: str
    """`ok`, `tool_error`, `timeout`, `infra_error`."""
    result: Text
    seconds: float
    cpu_seconds: float
    memory_bytes: int | None
    """Null: sandboxes do not record it."""
    purpose: str
    """`trial` or `execution`: the session that it ran in."""


class Turn(Answer):
    """One completion of the policy and what followed it."""

    number: int
    """From 0."""
    phase: str
    start: int
    """First token."""
    end: int
    """First token after it."""
    text: Text
    finish_reason: str
    policy_error: str
    versions: list[int]
    """Policy versions of its tokens."""
    calls: list[Call]
    observations: list[Text]
    """Other messages to the policy after the turn."""


class Message(Answer):
    role: str
    content: Text


class Part(Answer):
    name: str
    value: float | None


class Overlay(Answer):
    """Values per token that `/episode/tokens` has as a column."""

    name: str
    title: str
    unit: str
    available: bool
    reason: str
    """Why it is empty; empty where it is available."""
    tokens: int
    """Tokens with a value."""
    low: float | None
    """2nd percentile, for a scale."""
    high: float | None
    """98th percentile."""


class Scorer(Answer):
    """What the scorer saw and what it gave."""

    answer: Text
    outcome: str
    reward: float | None
    parts: list[Part]
    correct: bool | None
    note: str
    """What is not stored, such as the expected answer."""


class Neighbour(Answer):
    episode: str
    attempt: int
    sample_index: int
    reward: float | None
    outcome: str


class EpisodeDetail(Answer):
    """The page Episode."""

    row: EpisodeRow
    error: Text
    question: Text
    messages_before: list[Message]
    """Before the first turn: instructions and the question, as the policy got them."""
    turns: list[Turn]
    scorer: Scorer
    tags: dict[str, str]
    extra: list[Part]
    """Further numbers that the runner recorded."""
    sampling: list[Part]
    seed: str
    """Of its lease; too large for a number of JavaScript."""
    worker: str
    tool_server: str
    isolation: str
    """Level of the sandbox that the tool server achieved."""
    consumed_at: str
    """When the learner took it, in words: `step 12, 1 version late`; or why it did not."""
    overlays: list[Overlay]
    siblings: list[Neighbour]
    """Other episodes of the group."""
    attempts: list[int]
    """Stored attempts of this episode."""
    flag_notes: dict[str, str]
    """For each flag, what was seen."""


class TextPart(Answer):
    """A piece of a text."""

    part: str
    text: str
    offset: int
    length: int
    """Of the whole text, in characters."""
    next: int | None


class TokenColumns(Answer):
    """The JSON form of the token columns; the Arrow form has the same columns.

    All lists have one entry per token.
    """

    token_id: list[int]
    phase: list[int]
    loss_mask: list[bool]
    version: list[int | None]
    staleness: list[int | None]
    logprob: list[float | None]
    trainer_logprob: list[float | None]
    mismatch: list[float | None]
    entropy: list[float | None]
    advantage: list[float | None]
    text: list[str] | None
    """Each token rendered; null where no tokenizer was found."""
    text_reason: str


class DiffTurn(Answer):
    """A row of the diff: one turn per side, null where a side has no further turn."""

    number: int
    same: bool
    sides: list[Text | None]
    phases: list[str | None]
    first_difference: int | None
    """Character at which the texts part."""


class DiffToken(Answer):
    """Where the token ids part."""

    position: int | None
    """Index of the first token that differs; null where all are equal."""
    turns: list[int | None]
    """Turn of that token, by side."""
    contexts: list[str]
    """Text around it, by side, where it lies in a turn."""


class Delta(Answer):
    name: str
    values: list[float | None]
    """By side."""
    change: float | None
    """Last minus first."""


class Diff(Answer):
    """Two or more siblings side by side."""

    rows: list[EpisodeRow]
    same_task: bool
    turns: list[DiffTurn]
    first_divergent_turn: int | None
    first_divergent_token: DiffToken
    reward_parts: list[Delta]
    calls: list[Delta]
    """Calls by tool, as `search (trial)`."""
    numbers: list[Delta]
    """Tokens, turns, seconds."""
