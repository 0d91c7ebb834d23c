"""Reader of a run directory, whether its run is running, finished or was killed."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
from pydantic import JsonValue

from envs.errors import MissingError, StoreError
from rollout.episode import Episode
from rollout.episode_schema import from_batch
from rollout.store.journal import read_objects
from rollout.store.ledger import LedgerReader
from rollout.store.ledger_state import LedgerState, State
from rollout.store.run_kind import kind_of
from rollout.store.run_layout import RunInfo, RunKind, existing_run, read_run_info
from rollout.store.segments import EpisodeRow, SegmentReader
from rollout.store.shared_files import read_bytes
from rollout.store.stored_recipe import Recipe, parse_recipe

_LARGEST = 2**1000
"""Of a number that floats can hold; a larger integer is no metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeFilter:
    """Which episodes to list; None and the empty string do not restrict the list."""

    outcome: str = ""
    task: str = ""
    group: str = ""
    source: str = ""
    split: str = ""
    step: int | None = None
    """Step that trained on the episode."""

    def admits(self, row: EpisodeRow) -> bool:
        """Whether the row matches; `step` is not in the row and is checked with the ledger."""
        wanted = (self.outcome, self.task, self.group, self.source, self.split)
        found = (row.outcome, row.task, row.group, row.source, row.split)
        return all(not want or want == have for want, have in zip(wanted, found, strict=True))


@dataclass(frozen=True, slots=True)
class MetricsRow:
    """The metrics of one step, without numbers that were not finite."""

    step: int
    values: dict[str, float]


class RunReader:
    """Reads one run directory; every call includes everything written so far."""

    def __init__(self, path: Path) -> None:
        self.layout = existing_run(path)
        self._segments: dict[str, SegmentReader] = {}
        self._ledger = LedgerReader(self.layout.ledger)

    @property
    def info(self) -> RunInfo:
        """Content of `run.json`. Raises StoreError."""
        return read_run_info(self.layout)

    @property
    def kind(self) -> RunKind:
        """What the run is: of `run.json`, or inferred from the directory's content."""
        return kind_of(self.layout)

    @property
    def recipe(self) -> Recipe:
        """The run's current or last recipe. Raises MissingError, StoreError."""
        path = self.layout.config_toml
        if not path.exists():
            raise MissingError(f"expected config.toml, found none in {self.layout.root}")
        try:
            return parse_recipe(read_bytes(path).decode(), str(path))
        except UnicodeDecodeError as error:
            raise StoreError(f"{path}: expected UTF-8, found {error}") from error

    def ledger(self) -> LedgerState:
        """Return the current state of every scheduled episode."""
        return self._ledger.refresh()

    def episodes(self, wanted: EpisodeFilter | None = None) -> list[EpisodeRow]:
        """Return the narrow rows of stored episodes, oldest first.

        An episode with several stored attempts is listed once per attempt.
        """
        for name in self.layout.segments():
            index = self.layout.index / f"{name}.jsonl"
            path = self.layout.episodes / f"{name}.arrows"
            self._segments.setdefault(name, SegmentReader(path, index)).refresh()
        rows = [row for segment in self._segments.values() for row in segment.rows]
        if wanted is None:
            return rows
        if wanted.step is not None:
            entries = self.ledger().entries
            trained = {
                (entry.lease.episode, entry.lease.attempt)
                for entry in entries.values()
                if entry.state is State.TRAINED and entry.step == wanted.step
            }
            rows = [row for row in rows if (row.episode, row.attempt) in trained]
        return [row for row in rows if wanted.admits(row)]

    def last_attempts(self) -> list[EpisodeRow]:
        """Return the row of the last stored attempt of every episode, sorted by episode id."""
        rows = sorted(self.episodes(), key=lambda row: (row.episode, row.attempt))
        return list({row.episode: row for row in rows}.values())

    def episode(self, prefix: str) -> Episode:
        """Return the newest attempt of the episode whose id starts with `prefix`; or of the only
        episode of the task `prefix`, where several ids do, or none.

        Raises MissingError if no episode or more than one matches.
        """
        rows = self.episodes()
        choices = (
            [row for row in rows if row.episode == prefix],
            [row for row in rows if row.task == prefix],
            [row for row in rows if row.episode.startswith(prefix)],
        )
        names = [sorted({row.episode for row in choice}) for choice in choices]
        for choice, found in zip(choices, names, strict=True):
            if len(found) == 1:
                return from_batch(self.batch([choice[-1]]))[0]
        found = max(names, key=len)
        raise MissingError(
            f"expected one episode whose id starts with {prefix!r}, or whose task that is, found "
            f"{len(found)}{': ' + ', '.join(found[:4]) if found else ''}. List them with: trialrun "
            "episodes"
        )

    def batch(self, rows: list[EpisodeRow]) -> pa.RecordBatch:
        """Return the stored episodes of `rows` (at least one) as one batch, in the same order."""
        return pa.concat_batches([self._segments[row.segment].read(row) for row in rows])

    def group(self, group: str) -> pa.RecordBatch:
        """Return the episodes of `group` that are finished in the ledger, by sample index.

        Raises MissingError if there are none, and StoreError if one is not in the store.
        """
        state = self.ledger()
        wanted = {
            (entry.lease.episode, entry.lease.attempt)
            for entry in map(state.entries.__getitem__, state.groups.get(group, ()))
            if entry.state in (State.FINISHED, State.TRAINED)
        }
        if not wanted:
            raise MissingError(f"expected a group with finished episodes, found none in {group!r}")
        rows = {
            (row.episode, row.attempt): row for row in self.episodes(EpisodeFilter(group=group))
        }
        lost = sorted(wanted - rows.keys())
        if lost:
            raise StoreError(
                f"group {group}: expected {len(wanted)} stored episodes, {len(lost)} are missing: "
                f"{lost[:4]}. Recover the run directory first"
            )
        return self.batch(sorted((rows[key] for key in wanted), key=lambda row: row.sample_index))

    def metrics(self) -> list[MetricsRow]:
        """Return one row per step, sorted; a repeated step has the metrics of its last run.

        Raises StoreError for a line that holds no metrics.
        """
        rows: dict[int, MetricsRow] = {}
        for number, row in enumerate(read_objects(self.layout.metrics), start=1):
            step = row.pop("step", None)
            if not (isinstance(step, int) and all(map(_is_metric, row.values()))):
                raise StoreError(
                    f"{self.layout.metrics}:{number}: expected the metrics of a step, found "
                    f"{str(row)[:80]!r} of step {str(step)[:20]!r}"
                )
            values = {name: cast(float, value) for name, value in row.items() if value is not None}
            rows[step] = MetricsRow(step, values)
        return [rows[step] for step in sorted(rows)]

    def annotations(self, step: int) -> pa.Table:
        """Return the learner's results of `step`. Raises MissingError."""
        path = self.layout.annotations(step)
        if not path.exists():
            raise MissingError(f"expected annotations of step {step}, found no {path}")
        try:
            table = pa.ipc.open_file(pa.BufferReader(read_bytes(path))).read_all()
            table.validate(full=True)  # reading what is not valid may end the process
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"expected the annotations of step {step} in {path}, found {str(error)[:200]}"
            ) from error
        return table


def _is_metric(value: JsonValue) -> bool:
    return value is None or (isinstance(value, int | float) and abs(value) <= _LARGEST)
