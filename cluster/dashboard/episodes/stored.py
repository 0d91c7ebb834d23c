"""Stored episodes as they are in the run directory, found through the index."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import duckdb
import pyarrow as pa

from cluster.dashboard.episodes.episode_rows import rows_for, uids_of
from cluster.dashboard.index.database import rows_of
from cluster.dashboard.index.segment_files import Place, SegmentFiles
from cluster.dashboard.models.episodes import EpisodeRow
from cluster.dashboard.problems import not_found
from envs.errors import StoreError

TOKEN_COLUMNS = ("token_ids", "phases", "loss_mask", "logprobs")


@dataclass(frozen=True, slots=True)
class Stored:
    """An episode: its row in the index and its record."""

    row: EpisodeRow
    batch: pa.RecordBatch
    """One row."""

    def record(self, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the record as Python values, without the token columns unless they are named."""
        wanted = columns or [n for n in self.batch.schema.names if n not in TOKEN_COLUMNS]
        return cast(dict[str, Any], self.batch.select(list(wanted)).to_pylist()[0])


def find_stored(
    cursor: duckdb.DuckDBPyConnection,
    files: SegmentFiles,
    episode: str,
    attempt: int | None = None,
) -> Stored:
    """Return an episode, by default its newest attempt. Raises ApiError, StoreError."""
    found = uids_of(cursor, episode, attempt)
    if not found:
        which = f"attempt {attempt} of " if attempt is not None else ""
        raise not_found(
            f"there is no stored {which}episode {episode[:100]!r}",
            "list the episodes; one in progress is stored when it ends",
        )
    return read_stored(cursor, files, [found[-1][1]])[0]


def read_stored(
    cursor: duckdb.DuckDBPyConnection, files: SegmentFiles, uids: Sequence[int]
) -> list[Stored]:
    """Return the episodes of `uids`, in their order. Raises StoreError for damaged ones."""
    rows = {row.uid: row for row in rows_for(cursor, uids)}
    batches = read_batches(cursor, files, uids)
    return [Stored(rows[uid], batches[uid]) for uid in uids]


def read_batches(
    cursor: duckdb.DuckDBPyConnection, files: SegmentFiles, uids: Sequence[int]
) -> dict[int, pa.RecordBatch]:
    """Return a batch of one row for each of `uids`. Raises StoreError for damaged ones."""
    places = rows_of(
        cursor,
        "SELECT uid, segment, place, nbytes, row FROM episodes WHERE uid BETWEEN ? AND ? "
        "AND uid IN (SELECT unnest(?))",
        (min(uids, default=0), max(uids, default=0), list(uids)),
    )
    by_place: dict[Place, list[tuple[int, int]]] = defaultdict(list)
    for uid, segment, place, nbytes, row in places:
        by_place[Place(segment, place, nbytes)].append((uid, row))
    found: dict[int, pa.RecordBatch] = {}
    for place in sorted(by_place):
        batch = files.batch(place)
        for uid, row in by_place[place]:
            if row >= batch.num_rows:
                raise StoreError(
                    f"expected {row + 1} episodes at byte {place.offset} of segment "
                    f"{place.segment}, found {batch.num_rows}"
                )
            found[uid] = batch.slice(row, 1)
    return found
