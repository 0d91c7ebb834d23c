"""The index of one run: what has been read of its files, and reading what is new.

One thread refreshes all indexes; requests read through cursors of their own and see whole
refreshes only. A refresh is one transaction, so a kill of the dashboard leaves an index that goes
on where it was.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from cluster.dashboard.index.annotations import add_annotations
from cluster.dashboard.index.database import Database, Identity, Row, rows_of
from cluster.dashboard.index.detail_queue import DetailQueue
from cluster.dashboard.index.index_lines import lines_of, listed_lines
from cluster.dashboard.index.ledger_rows import STAGED, Ledger
from cluster.dashboard.index.schema import EPISODE_COLUMNS, INDEX_LINE, LEDGER_LINE
from cluster.dashboard.index.segment_files import SegmentFiles
from cluster.dashboard.index.tail import Piece, Position, ahead, pieces, size_of, table_of
from cluster.dashboard.index.whole_files import Unusual, take_whole
from cluster.dashboard.models.shared import Coverage, Damage
from envs.errors import StoreError
from rollout.store.run_layout import RunLayout
from rollout.store.segments import narrow_rows

_LEDGER = "ledger/events.jsonl"
_AT_ONCE = 50_000
"""Rows that are inserted together."""
_PATIENCE_S = 2.0
"""How long an index line may come later than its episode before the segment itself is read."""


def free_memory() -> None:
    """Give back what Arrow keeps of tables that are no longer used."""
    pa.default_memory_pool().release_unused()


@dataclass(slots=True)
class _Known:
    """The last row of a segment that the index has, and the byte after its message."""

    offset: int = -1
    row: int = -1
    end: int = 0


class RunIndex:
    """The index of the run at `layout`; `refresh` and `read_details` are for one thread."""

    def __init__(self, layout: RunLayout, identity: Identity, database: Database) -> None:
        self.layout = layout
        self.identity = identity
        self.files = SegmentFiles(layout)
        self.loaded = threading.Event()
        """Set after the first refresh."""
        self.failed: Exception | None = None
        self._database = database
        self._alias = database.attach(identity.key, identity.mark)
        self._damage: dict[tuple[str, str], Damage] = {}
        self._behind_since: dict[str, float] = {}
        self._directly = True
        """Whether DuckDB may read the lines of closed segments by itself, if it is a first time."""
        self._into = "episodes"
        self._waiting: list[pa.Table] = []
        """Rows of episodes that `_flush` inserts."""
        self._read_state()

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection for one thread."""
        with self._database.cursor(self._alias) as cursor:
            yield cursor

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query."""
        with self.cursor() as cursor:
            return rows_of(cursor, sql, parameters)

    @property
    def episodes(self) -> int:
        """Stored episodes in the index; also the `uid` that the next one gets."""
        return self._next_uid

    @property
    def coverage(self) -> Coverage:
        """How far the index is."""
        details = self._details.done
        complete = self.loaded.is_set() and details == self._next_uid
        return Coverage(episodes=self._next_uid, details=details, complete=complete)

    @property
    def damage(self) -> list[Damage]:
        """What could not be read."""
        return list(self._damage.values())

    @property
    def folder(self) -> str:
        """Folder of the index's file."""
        return str(self._database.cache)

    def close(self) -> None:
        """Close the index; its file stays."""
        self._database.detach(self._alias)

    def refresh(self) -> bool:
        """Read what was appended to the ledger, the index lines and the annotations.

        Returns whether anything was new.
        """
        if self._shrank():
            self._database.reset(self._alias, self.identity.key, self.identity.mark)
            self._damage.clear()
            self._read_state()
        try:
            changed = self._refresh_at_once()
        except (Unusual, duckdb.Error, OSError):
            if not self._directly or _LEDGER in self._positions:  # it was not a first time
                raise
            self._directly = False
            self._damage.clear()
            self._read_state()
            changed = self._refresh_at_once()
        self.loaded.set()
        return changed

    def _refresh_at_once(self) -> bool:
        """Refresh in one transaction."""
        with self.cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                changed = self._refresh(cursor)
                cursor.execute("COMMIT")
            except BaseException:
                cursor.execute("ROLLBACK")
                self._read_state()
                raise
        return changed

    def read_details(self, most: int, *, shared_sessions: bool) -> bool:
        """Read the details of some more episodes, the newest first; return whether any are left."""
        with self.cursor() as cursor:
            damage = self._details.read(cursor, self.files, most, shared_sessions=shared_sessions)
        for found in damage:
            self._note(found)
        return self._details.left > 0

    def _read_state(self) -> None:
        self._waiting.clear()
        with self.cursor() as cursor:
            self._positions = {
                name: Position(read, lines)
                for name, read, lines in rows_of(cursor, "SELECT name, bytes, lines FROM files")
            }
            rows = rows_of(
                cursor,
                "SELECT segment, max(place), arg_max(row, (place, row)), max(place + nbytes) "
                "FROM episodes GROUP BY segment",
            )
            self._known = {name: _Known(offset, row, end) for name, offset, row, end in rows}
            self._next_uid = rows_of(cursor, "SELECT coalesce(max(uid), -1) + 1 FROM episodes")[0][
                0
            ]
            self._details = DetailQueue.of(cursor, self._next_uid)
            for where, what, fix, severity in rows_of(cursor, "SELECT * FROM damage"):
                found = Damage(where=where, what=what, fix=fix, severity=severity)
                self._damage[where, what] = found

    def _shrank(self) -> bool:
        """Whether a file is shorter than what was read of it: the run was replaced or restored."""
        return any(
            size_of(self.layout.root / name) < position.bytes
            for name, position in self._positions.items()
        )

    def _refresh(self, cursor: duckdb.DuckDBPyConnection) -> bool:
        first = _LEDGER not in self._positions
        before, positions = self._next_uid, dict(self._positions)
        # Read before the index lines: an episode is stored before the ledger names it.
        events = self._ledger_pieces(cursor)
        if first:
            self._load(cursor, events)
        else:
            waiting = list(events)
            self._take_rows(cursor)
            for piece in waiting:
                Ledger(cursor).follow(*piece)
        self._store_positions(cursor, positions)
        annotated = add_annotations(cursor, self.layout, self._note)
        self._details.extend(self._next_uid)
        moved = self._positions[_LEDGER] != positions.get(_LEDGER, Position())
        return moved or annotated or self._next_uid > before

    def _load(
        self, cursor: duckdb.DuckDBPyConnection, events: Iterator[tuple[pa.Table, pa.Array]]
    ) -> None:
        """Read the whole run."""
        ledger = Ledger(cursor)
        ledger.load_begin()
        if not self._take_whole(ledger):
            for piece in events:
                ledger.load_piece(*piece)
        self._into = STAGED
        try:
            self._take_rows(cursor)
        finally:
            self._into = "episodes"
        ledger.load_end()
        free_memory()
        self._positions.setdefault(_LEDGER, Position())

    def _ledger_pieces(
        self, cursor: duckdb.DuckDBPyConnection
    ) -> Iterator[tuple[pa.Table, pa.Array]]:
        position = self._positions.get(_LEDGER, Position())

        def parsed(piece: Piece) -> tuple[Piece, pa.Table, pa.Array | None, list[Damage]]:
            return piece, *table_of(piece, LEDGER_LINE, _LEDGER)

        for piece, table, numbers, damage in ahead(pieces(self.layout.ledger, position), parsed):
            for found in damage:
                self._note(found, cursor)
            if numbers is None:
                start = piece.start.lines + 1
                numbers = pa.array(np.arange(start, start + table.num_rows))
            self._positions[_LEDGER] = piece.end
            yield table, numbers

    def _take_whole(self, ledger: Ledger) -> bool:
        """Take most of the run at once, if that can be done."""
        if not self._directly:
            return False
        whole = take_whole(ledger, self.layout)
        self._positions[_LEDGER] = whole.ledger
        for segment, taken in whole.segments.items():
            self._positions[lines_of(segment)] = taken.position
            self._known[segment] = _Known(taken.offset, taken.row, taken.end)
            self._next_uid += taken.position.lines
        return True

    def _take_rows(self, cursor: duckdb.DuckDBPyConnection) -> None:
        for found in listed_lines(self.layout, dict(self._positions)):
            segment, name = found.segment, found.name
            if found.piece is None:
                self._take_unlisted(cursor, segment, size_of(self.files.path(segment)))
                continue
            self._positions[name] = found.piece.end
            self._insert(cursor, self._whole(found.whole, segment, found.size))
            read = found.piece.start.lines + found.whole.num_rows
            if read < found.piece.end.lines:
                self._note_gap(name, read + 1, cursor)
                self._scan(cursor, segment, found.size)
        self._flush(cursor)

    def _whole(self, table: pa.Table, segment: str, size: int) -> pa.Table:
        """Return the rows that are new and whose message is whole in the segment."""
        if table.num_rows == 0:
            return table
        known = self._known.get(segment, _Known())
        # As floats, in which a value that a line lacks is NaN and no comparison holds.
        place, size_of_message, row = (
            table[name].to_numpy().astype(np.float64) for name in ("offset", "nbytes", "row")
        )
        end = place + size_of_message
        new = (place > known.offset) | ((place == known.offset) & (row > known.row))
        named = table["segment"].to_numpy() == segment
        kept = table.filter(pa.array(new & (end <= size) & named))
        beyond = int((end > size).sum())
        if beyond:
            self._note(
                Damage(
                    where=f"episodes/{segment}.arrows",
                    what=f"{beyond} episodes of its index lie beyond its end at byte {size}",
                    fix="copy the segment again if the run was copied; resuming plays them again",
                )
            )
        return kept

    def _insert(self, cursor: duckdb.DuckDBPyConnection, table: pa.Table) -> None:
        count = table.num_rows
        if count == 0:
            return
        uids = pa.array(np.arange(self._next_uid, self._next_uid + count))
        self._waiting.append(table.append_column("uid", uids))
        last = table.slice(count - 1).to_pylist()[0]
        self._known[last["segment"]] = _Known(
            last["offset"], last["row"], last["offset"] + last["nbytes"]
        )
        self._next_uid += count
        if sum(table.num_rows for table in self._waiting) >= _AT_ONCE:
            self._flush(cursor)

    def _flush(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Insert the rows that wait: many at once cost much less than a segment's at a time."""
        if not self._waiting:
            return
        cursor.register("fresh_rows", pa.concat_tables(self._waiting))
        self._waiting.clear()
        columns = ", ".join(EPISODE_COLUMNS)
        cursor.execute(
            f"INSERT INTO {self._into} (uid, {columns}, state, reason) SELECT uid, episode, "
            'attempt, "group", task, sample_index, environment, split, mode, source, outcome, '
            'reward, oldest_version, started_at, wall_s, tokens, segment, "offset", nbytes, "row", '
            "'stored', '' FROM fresh_rows"
        )
        cursor.unregister("fresh_rows")

    def _take_unlisted(self, cursor: duckdb.DuckDBPyConnection, segment: str, size: int) -> None:
        """Read episodes from the segment itself where its index does not have them."""
        end = self._known.get(segment, _Known()).end
        if end >= size:
            self._behind_since.pop(segment, None)
            return
        now = time.monotonic()
        since = self._behind_since.setdefault(segment, now)
        newest = segment == max(self.layout.segments())
        if newest and self.loaded.is_set() and now - since < _PATIENCE_S:
            return
        self._scan(cursor, segment, size)

    def _scan(self, cursor: duckdb.DuckDBPyConnection, segment: str, size: int) -> None:
        try:
            start = max(self._known.get(segment, _Known()).end, self.files.header(segment)[1])
            end = start
            for batch, place in self.files.scan(segment, start, size):
                rows = narrow_rows(batch, segment, place.offset, place.nbytes)
                lines = [{f: getattr(row, f) for f in INDEX_LINE.names} for row in rows]
                self._insert(cursor, pa.Table.from_pylist(lines, INDEX_LINE))
                end = place.offset + place.nbytes
        except StoreError as error:
            self._note(
                Damage(
                    where=f"episodes/{segment}.arrows",
                    what=str(error),
                    fix="its episodes are not shown; the other segments are",
                    severity="error",
                ),
                cursor,
            )
            return
        if end < size:
            self._note_torn(segment, end, size)

    def _note_gap(self, name: str, line: int, cursor: duckdb.DuckDBPyConnection) -> None:
        self._note(
            Damage(
                where=f"{name}:{line}",
                what="a line without the fields of an episode",
                fix="nothing has to be done: the episodes were read from the segment itself",
                severity="note",
            ),
            cursor,
        )

    def _note_torn(self, segment: str, end: int, size: int) -> None:
        self._note(
            Damage(
                where=f"episodes/{segment}.arrows, byte {end}",
                what=f"the last {size - end} bytes are no whole episode",
                fix="nothing has to be done if the run was killed there or is writing it now",
                severity="note",
            )
        )

    def _store_positions(
        self, cursor: duckdb.DuckDBPyConnection, before: dict[str, Position]
    ) -> None:
        moved = {n: at for n, at in self._positions.items() if before.get(n) != at}
        if moved:
            cursor.execute("DELETE FROM files WHERE list_contains(?, name)", [[*moved]])
            rows = [[name, at.bytes, at.lines] for name, at in moved.items()]
            cursor.executemany("INSERT INTO files VALUES (?, ?, ?)", rows)

    def _note(self, found: Damage, cursor: duckdb.DuckDBPyConnection | None = None) -> None:
        """Keep what was found; with `cursor` also for the next start, which does not read it."""
        if (found.where, found.what) in self._damage:
            return
        self._damage[found.where, found.what] = found
        if cursor is not None:
            values = [found.where, found.what, found.fix, found.severity]
            cursor.execute("INSERT INTO damage VALUES (?, ?, ?, ?)", values)
