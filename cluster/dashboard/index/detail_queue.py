"""Which stored episodes still have to be read, and reading some of them."""

from collections import defaultdict
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from cluster.dashboard.index.database import rows_of
from cluster.dashboard.index.detail_rows import NEEDED, add_details
from cluster.dashboard.index.segment_files import Place, SegmentFiles
from cluster.dashboard.models.shared import Damage
from envs.errors import StoreError

_GAPS = """
SELECT after, uid FROM (
    SELECT uid, coalesce(lag(uid) OVER (ORDER BY uid), -1) + 1 AS after FROM details
) WHERE uid > after
"""
_BYTES = 24 << 20
"""Stored bytes that are held at once, apart from a single larger message."""


@dataclass(slots=True)
class DetailQueue:
    """Ranges `[start, end)` of `uid` without details, the newest last."""

    ranges: list[tuple[int, int]]
    end: int

    @classmethod
    def of(cls, cursor: duckdb.DuckDBPyConnection, end: int) -> "DetailQueue":
        """Return what is missing of the episodes with a `uid` below `end`."""
        found = [(start, stop) for start, stop in rows_of(cursor, _GAPS)]
        last = rows_of(cursor, "SELECT coalesce(max(uid), -1) + 1 FROM details")[0][0]
        queue = cls(sorted(found), last)
        queue.extend(end)
        return queue

    @property
    def left(self) -> int:
        """Episodes without details."""
        return sum(end - start for start, end in self.ranges)

    @property
    def done(self) -> int:
        """Episodes with details."""
        return self.end - self.left

    def extend(self, end: int) -> None:
        """Take note of new episodes."""
        if end > self.end:
            self.ranges.append((self.end, end))
            self.end = end

    def read(
        self,
        cursor: duckdb.DuckDBPyConnection,
        files: SegmentFiles,
        most: int,
        *,
        shared_sessions: bool,
    ) -> list[Damage]:
        """Read at most `most` episodes, the newest, and return what was damaged."""
        if not self.ranges:
            return []
        start, end = self.ranges[-1]
        first = max(start, end - most)
        found = rows_of(
            cursor,
            "SELECT uid, segment, place, nbytes, row FROM episodes WHERE uid >= ? AND uid < ? "
            "ORDER BY uid DESC",
            [first, end],
        )
        taken, size, seen = 0, 0, set()
        for _, segment, place, nbytes, _ in found:
            size += 0 if (segment, place) in seen else nbytes
            seen.add((segment, place))
            if taken and size > _BYTES:
                break
            taken += 1
        chosen = found[:taken]
        first = chosen[-1][0]
        tables, damage = _read(files, chosen)
        cursor.execute("BEGIN")
        if tables:
            add_details(cursor, pa.concat_tables(tables), shared_sessions=shared_sessions)
        lost = [uid for uid, *_ in chosen if uid not in _uids(tables)] if damage else []
        for uid in lost:
            cursor.execute("INSERT INTO details (uid, error) VALUES (?, 'damaged')", [uid])
        cursor.execute("COMMIT")
        self.ranges[-1] = (start, first)
        if first <= start:
            self.ranges.pop()
        return damage


def _uids(tables: list[pa.Table]) -> set[int]:
    return {uid for table in tables for uid in table["uid"].to_pylist()}


def _read(
    files: SegmentFiles, chosen: list[tuple[int, str, int, int, int]]
) -> tuple[list[pa.Table], list[Damage]]:
    """Return the episodes with the columns that details need, and what is damaged."""
    wanted: dict[Place, list[tuple[int, int]]] = defaultdict(list)
    for uid, segment, place, nbytes, row in chosen:
        wanted[Place(segment, place, nbytes)].append((uid, row))
    tables, damage = [], []
    for place in sorted(wanted):
        pairs = sorted(wanted[place], key=lambda pair: pair[1])
        uids, rows = [uid for uid, _ in pairs], [row for _, row in pairs]
        try:
            batch = files.batch(place)
            table = pa.Table.from_batches([batch.select(list(NEEDED))])
            if rows != list(range(table.num_rows)):
                table = table.take(rows)
        except (StoreError, pa.ArrowException) as error:
            damage.append(
                Damage(
                    where=f"episodes/{place.segment}.arrows, byte {place.offset}",
                    what=f"{len(rows)} episodes are damaged: {str(error)[:300]}",
                    fix="they are listed without details; every other episode is whole",
                    severity="error",
                )
            )
            continue
        tables.append(table.append_column("uid", pa.array(uids, pa.int64())))
    return tables, damage
