"""The rows of an evaluation, read from its run directory."""

from pathlib import Path

from rollout.episode_schema import from_batch
from rollout.evaluation.summary import EvalRow
from rollout.store.run_reader import RunReader

_AT_ONCE = 256
"""Episodes that are held whole in memory."""


def read_rows(path: Path) -> list[EvalRow]:
    """Return every episode of the run at `path` as its last attempt left it, by episode."""
    reader = RunReader(path)
    rows = reader.last_attempts()
    found: list[EvalRow] = []
    for start in range(0, len(rows), _AT_ONCE):
        batch = reader.batch(rows[start : start + _AT_ONCE])
        found += map(EvalRow.of, from_batch(batch))
    return found
