"""SFT data: the correct or selected episodes of run directories, mixed by weight."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cluster.lifecycle.stored_config import stored_config
from cluster.teachers.selection_file import read_selection
from envs.errors import ConfigError
from envs.seeds import stable_hash
from rollout.chat.template import ChatTemplate
from rollout.config import ToolFormatName
from rollout.episode import ANSWER_PART, is_correct
from rollout.episode_schema import from_batch
from rollout.language import format_of
from rollout.store.run_reader import RunReader
from rollout.store.segments import EpisodeRow

_AT_ONCE = 256
"""Episodes in memory while the correct ones are chosen."""
_CHECKED = 8
"""Episodes of a source whose tokens are decoded, to compare the tokenizer."""


@dataclass(frozen=True, slots=True)
class Source:
    """A run directory to train on, and how often each of its episodes is seen in an epoch."""

    run: Path
    weight: float = 1.0


def parse_source(text: str) -> Source:
    """Read `DIR` or `DIR=WEIGHT`. Raises ConfigError for an impossible weight."""
    if Path(text).exists() or "=" not in text:
        return Source(Path(text))
    path, _, weight = text.rpartition("=")
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(
            f"--from {text!r}: expected DIR or DIR=WEIGHT, for example runs/a=0.5, "
            f"found the weight {weight!r}"
        )
    return Source(Path(path), number)


def sft_table(
    sources: Sequence[Source],
    template: ChatTemplate,
    seed: int,
    tool_format: ToolFormatName = "auto",
) -> pa.Table:
    """Return the episodes of all sources, each as often as its weight says.

    A weight of 2.5 gives every episode twice and half of them, sampled with `seed`, once more.
    Raises ConfigError where a source has no episode to train on, has another tokenizer's tokens, or
    its calls in another format than the model's `tool_format`.
    """
    tables: list[pa.Table] = []
    for source in sources:
        table = selected_of(source.run)
        _check_tokens(table, template, source.run)
        _check_format(template, source.run, tool_format)
        tables += _weighted(table, source, seed)
    if not tables:
        raise ConfigError("the weights leave no episode to train on: raise them")
    return pa.concat_tables(tables)


def selected_of(run: Path) -> pa.Table:
    """Return the selected episodes of a collection, else a run's correct ones, ordered by id.

    Raises ConfigError for none.
    """
    selection = read_selection(run)
    if selection is None:
        return correct_of(run)
    reader, wanted = RunReader(run), set(selection.selected)
    rows = [row for row in reader.last_attempts() if row.episode in wanted]
    if not rows:
        raise ConfigError(f"none of the {len(selection.dropped)} episodes in {run} was selected")
    return _table(reader, rows)


def correct_of(run: Path) -> pa.Table:
    """Return the episodes of a run whose answer is correct. Raises ConfigError for none."""
    reader = RunReader(run)
    counted = [row for row in reader.episodes() if row.reward is not None]
    parts = [counted[start : start + _AT_ONCE] for start in range(0, len(counted), _AT_ONCE)]
    found = [correct_rows(_table(reader, rows)) for rows in parts]
    if not any(part.num_rows for part in found):
        raise ConfigError(f"no episode in {run} has a correct answer: nothing to train on")
    return pa.concat_tables(found)


def correct_rows(table: pa.Table) -> pa.Table:
    """Return the rows of episodes whose answer is correct."""
    answers = [dict(parts).get(ANSWER_PART, 0.0) for parts in table["reward_parts"].to_pylist()]
    return table.filter(pa.array([is_correct(answer) for answer in answers]))


def _table(reader: RunReader, rows: list[EpisodeRow]) -> pa.Table:
    return pa.Table.from_batches([reader.batch(rows)])


def _weighted(table: pa.Table, source: Source, seed: int) -> list[pa.Table]:
    whole, part = divmod(source.weight, 1.0)
    names = table["episode"].to_pylist()
    order = sorted(
        range(len(names)), key=lambda row: stable_hash(seed, "mix", str(source.run), names[row])
    )
    sampled = sorted(order[: round(part * len(names))])
    return [table] * int(whole) + ([table.take(sampled)] if sampled else [])


def _check_format(template: ChatTemplate, run: Path, tool_format: ToolFormatName) -> None:
    stored = stored_config(RunReader(run).layout.config_toml).model.tool_format
    found, expected = (format_of(template, name).tools.name for name in (stored, tool_format))
    if found != expected:
        raise ConfigError(
            f"the episodes in {run} have tool calls in the format {found!r}, the model is to write "
            f"{expected!r}: set model.tool_format = {found!r}, or collect again"
        )


def _check_tokens(table: pa.Table, template: ChatTemplate, run: Path) -> None:
    for episode in from_batch(table.slice(0, _CHECKED).combine_chunks().to_batches()[0]):
        for turn in episode.turns:
            text = template.decode(episode.token_ids_T[turn.start : turn.end])
            if text != turn.text:
                raise ConfigError(
                    f"{run} was collected for another tokenizer: tokens of episode "
                    f"{episode.lease.episode} read {text[:40]!r} here and {turn.text[:40]!r} "
                    "there; collect again with this model.path"
                )
