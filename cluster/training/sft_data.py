"""What is imitated: the right or kept episodes of run directories, mixed by weight."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cluster.teachers.selection_file import read_kept
from envs.errors import ConfigError
from envs.seeds import stable_hash
from rollout.episode_schema import from_batch
from rollout.store.run_reader import RunReader
from rollout.store.segments import EpisodeRow
from rollout.template import ChatTemplate

_CHECKED = 8
"""Episodes of a set whose tokens are read back."""


@dataclass(frozen=True, slots=True)
class Source:
    """A run directory to imitate, and how often each of its episodes is seen in an epoch."""

    run: Path
    weight: float = 1.0


def parse_source(text: str) -> Source:
    """Read `DIR` or `DIR=WEIGHT`. Raises ConfigError for a weight that is none."""
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


def lessons(sources: Sequence[Source], template: ChatTemplate, seed: int) -> pa.Table:
    """Return the episodes of all sources, each as often as its weight says.

    A weight of 2.5 gives every episode twice and half of them, drawn by `seed`, once more. Raises
    ConfigError where a source has nothing to imitate, or was collected for another tokenizer.
    """
    tables: list[pa.Table] = []
    for source in sources:
        table = kept_of(source.run)
        _check_tokens(table, template, source.run)
        tables += _weighted(table, source, seed)
    if not tables:
        raise ConfigError("the weights leave no episode to imitate: raise them")
    return pa.concat_tables(tables)


def kept_of(run: Path) -> pa.Table:
    """Return what was kept of a collection, else a run's right answers, ordered by id.

    Raises ConfigError for none.
    """
    kept = read_kept(run)
    if kept is None:
        return successes_of(run)
    reader, wanted = RunReader(run), set(kept.kept)
    rows = [row for row in reader.last_attempts() if row.episode in wanted]
    if not rows:
        raise ConfigError(f"nothing was kept of the {len(kept.dropped)} episodes in {run}")
    return _table(reader, rows)


def successes_of(run: Path) -> pa.Table:
    """Return the episodes of a run whose answer was right. Raises ConfigError for none."""
    reader = RunReader(run)
    rows = [row for row in reader.episodes() if row.reward is not None and row.reward > 0.5]
    if not rows:
        raise ConfigError(f"no episode in {run} has a reward above 0.5: nothing to imitate")
    return _table(reader, rows)


def _table(reader: RunReader, rows: list[EpisodeRow]) -> pa.Table:
    return pa.Table.from_batches([reader.batch(rows)])


def _weighted(table: pa.Table, source: Source, seed: int) -> list[pa.Table]:
    whole, part = divmod(source.weight, 1.0)
    names = table["episode"].to_pylist()
    order = sorted(
        range(len(names)), key=lambda row: stable_hash(seed, "mix", str(source.run), names[row])
    )
    drawn = sorted(order[: round(part * len(names))])
    return [table] * int(whole) + ([table.take(drawn)] if drawn else [])


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
