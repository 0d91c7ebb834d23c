"""Ledger and index lines that DuckDB reads by itself: for whole runs that are read the first time.

That costs half of reading them through Arrow. It is only done where every line is whole and has its
checksum; anything unusual is `Unusual`, and all files are then read in the way that bears it.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from cluster.dashboard.index.index_lines import lines_of
from cluster.dashboard.index.ledger_rows import EVENTS, RAW_EVENTS, STAGED, Ledger, first_row
from cluster.dashboard.index.schema import EPISODE_COLUMNS, INDEX_LINE, LEDGER_LINE
from cluster.dashboard.index.tail import PIECE_BYTES, Position, size_of
from rollout.store.line_checks import all_are_whole
from rollout.store.regular_files import plain, reading
from rollout.store.run_layout import RunLayout

_TYPES = {
    pa.string(): "VARCHAR",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
}
_LINE = ", ".join(f"'{field.name}': '{_TYPES[field.type]}'" for field in INDEX_LINE)
_SAMPLES = "STRUCT(episode VARCHAR, sample_index INTEGER, attempt INTEGER)[]"
_LISTS = {"samples": _SAMPLES, "episodes": "VARCHAR[]"}
_EVENT = ", ".join(
    f"'{field.name}': '{_LISTS.get(field.name) or _TYPES[field.type]}'" for field in LEDGER_LINE
)
_COLUMNS = ", ".join(EPISODE_COLUMNS)
_NAMES = ", ".join(f'"{name}"' for name in INDEX_LINE.names)
_NEEDED = " OR ".join(
    f"{name} IS NULL"
    for name, field in zip(EPISODE_COLUMNS, INDEX_LINE, strict=True)
    if field.name != "reward"
)


class Unusual(Exception):
    """A closed segment's lines are not as a run writes them."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What was read of a segment's lines: the last row, the byte after it, and the position."""

    offset: int
    row: int
    end: int
    position: Position


@dataclass(frozen=True, slots=True)
class Whole:
    """What was read of a run: the position in its ledger, and the lines of closed segments."""

    ledger: Position
    segments: dict[str, Taken]


@dataclass(frozen=True, slots=True)
class _Lines:
    position: Position
    size: int
    """Of the segment, looked at after its lines."""


def take_whole(ledger: Ledger, layout: RunLayout) -> Whole:
    """Take the whole lines of the ledger, and the rows of all segments but the newest.

    The table STAGED must be empty. Raises Unusual, duckdb.Error and OSError, after which the
    transaction must be rolled back.
    """
    cursor = ledger.cursor
    # Checksums are checked by one core, while DuckDB works on the other.
    with ThreadPoolExecutor(1, thread_name_prefix="dashboard-check") as checker:
        checking = checker.submit(_checked_lines, layout.ledger, size_of(layout.ledger))
        cursor.execute(
            f"CREATE OR REPLACE TEMP TABLE {RAW_EVENTS} AS FROM read_json("
            f"?, format = 'newline_delimited', columns = {{{_EVENT}}})",
            [plain(layout.ledger)],
        )
        position = checking.result()
        _show_events(cursor, position)
        # After the ledger: an episode is stored before the ledger names it.
        closed = layout.segments()[:-1]
        paths = [plain(layout.root / lines_of(segment)) for segment in closed]
        listing = checker.submit(_whole_files, layout, closed)
        ledger.load_events()
        if paths:
            cursor.execute(
                f"INSERT INTO {STAGED} ({_COLUMNS}, state, reason) SELECT {_NAMES}, 'stored', '' "
                f"FROM read_json(?, format = 'newline_delimited', columns = {{{_LINE}}})",
                [paths],
            )
        return Whole(position, _checked(cursor, listing.result()))


def _show_events(cursor: duckdb.DuckDBPyConnection, position: Position) -> None:
    first = first_row(cursor, RAW_EVENTS)
    cursor.execute(
        f"CREATE OR REPLACE TEMP VIEW {EVENTS} AS SELECT rowid - {first} + 1 AS line, * "
        f"FROM {RAW_EVENTS} "
        f"WHERE rowid < {first + position.lines}"  # it may have been appended to
    )
    found = cursor.execute(
        f"SELECT count(*), count(*) FILTER (WHERE event IS NULL OR event = 'rolled_back') "
        f"FROM {EVENTS}"
    ).fetchone()
    if found != (position.lines, 0):  # after a roll-back, the order of reading matters
        raise Unusual(EVENTS)


def _checked_lines(path: Path, size: int) -> Position:
    """Return where the first `size` bytes of a journal end. Raises Unusual unless they are whole
    lines.
    """
    position, rest = Position(), b""
    with reading(path) as file:
        while position.bytes + len(rest) < size:
            block = file.read(min(PIECE_BYTES, size - position.bytes - len(rest)))
            if not block:
                raise Unusual(path)
            rest += block
            cut = rest.rfind(b"\n") + 1
            lines, rest = rest[:cut], rest[cut:]
            if not all_are_whole(lines):
                raise Unusual(path)
            position = Position(position.bytes + cut, position.lines + lines.count(b"\n"))
    if rest or position.lines == 0:
        raise Unusual(path)
    return position


def _whole_files(layout: RunLayout, segments: list[str]) -> dict[str, _Lines]:
    """Look at the lines of segments. Raises Unusual."""
    found = {}
    for segment in segments:
        path = layout.root / lines_of(segment)
        position = _checked_lines(path, size_of(path))
        size = size_of(layout.episodes / f"{segment}.arrows")
        found[segment] = _Lines(position, size)
    return found


def _checked(cursor: duckdb.DuckDBPyConnection, expected: dict[str, _Lines]) -> dict[str, Taken]:
    found = cursor.execute(
        f"SELECT segment, count(*), max(place), arg_max(row, (place, row)), max(place + nbytes), "
        f"count(*) FILTER (WHERE {_NEEDED}) FROM {STAGED} GROUP BY segment"
    ).fetchall()
    taken = {}
    for segment, rows, offset, row, end, lacking in found:
        lines = expected.get(segment)
        if lines is None or rows != lines.position.lines or end > lines.size or lacking:
            raise Unusual(segment)
        taken[segment] = Taken(offset, row, end, lines.position)
    if len(taken) != len(expected):
        raise Unusual(*expected)
    return taken
