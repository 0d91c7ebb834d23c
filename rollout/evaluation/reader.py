"""Reads the rows of an evaluation from its run directory."""

from pathlib import Path

from rollout.episode_schema import from_batch
from rollout.evaluation.summary import EvalRow
from rollout.store.run_reader import RunReader

_BATCH_SIZE = 256
"""Number of complete episodes held in memory."""


def read_rows(path: Path) -> list[EvalRow]:
    """Return the last attempt of every episode of the run at `path`, sorted by episode id."""
    reader = RunReader(path)
    rows = reader.last_attempts()
    found: list[EvalRow] = []
    for start in range(0, len(rows), _BATCH_SIZE):
        batch = reader.batch(rows[start : start + _BATCH_SIZE])
        found += map(EvalRow.of, from_batch(batch))
    return found
