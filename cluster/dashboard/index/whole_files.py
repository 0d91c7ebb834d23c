"""Ledger and index lines that DuckDB reads by itself: for whole runs that are read the first time.

That costs half of reading them through Arrow. It is only done where every line is whole and has its
checksum; anything unusual is `Unusual`, and all files are then read in the way that bears it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from cluster.dashboard.index.ledger_rows import EVENTS, RAW_EVENTS, STAGED, first_row
from cluster.dashboard.index.schema import EPISODE_COLUMNS, INDEX_LINE, LEDGER_LINE
from cluster.dashboard.index.tail import PIECE_BYTES, Position, ahead, size_of
from rollout.store.line_checks import all_are_whole
from rollout.store.regular_files import plain, reading
from rollout.store.run_layout import RunLayout

_FILES_AT_ONCE = 6
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
class _Lines:
    segment: str
    path: Path
    position: Position
    size: int
    """Of the segment, looked at after its lines."""


def take_ledger(cursor: duckdb.DuckDBPyConnection, path: Path) -> Position | None:
    """Make the table EVENTS of all whole lines of a ledger; None where that cannot be done.

    Raises Unusual and duckdb.Error, after which the transaction must be rolled back.
    """
    size = size_of(path)
    if size == 0:
        return None
    with ThreadPoolExecutor(1, thread_name_prefix="dashboard-check") as one:
        checking = one.submit(_checked_lines, path, size)
        cursor.execute(
            f"CREATE OR REPLACE TEMP TABLE {RAW_EVENTS} AS FROM read_json("
            f"?, format = 'newline_delimited', columns = {{{_EVENT}}})",
            [plain(path)],
        )
        position = checking.result()
    if position is None:
        raise Unusual(path)
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
        raise Unusual(path)
    return position


def _checked_lines(path: Path, size: int) -> Position | None:
    """Return where the whole lines in the first `size` bytes end; None if one is damaged."""
    position, rest = Position(), b""
    with reading(path) as file:
        while position.bytes + len(rest) < size:
            block = file.read(min(PIECE_BYTES, size - position.bytes - len(rest)))
            if not block:
                return None
            rest += block
            cut = rest.rfind(b"\n") + 1
            lines, rest = rest[:cut], rest[cut:]
            if not all_are_whole(lines):
                return None
            position = Position(position.bytes + cut, position.lines + lines.count(b"\n"))
    return position if not rest else None


def take_closed(cursor: duckdb.DuckDBPyConnection, layout: RunLayout) -> dict[str, Taken]:
    """Put the rows of all segments but the newest into the empty table for rows, in order.

    Returns what was taken by segment. Raises Unusual, duckdb.Error and OSError, after which the
    transaction must be rolled back.
    """
    closed = layout.segments()[:-1]
    chunks = (
        closed[start : start + _FILES_AT_ONCE] for start in range(0, len(closed), _FILES_AT_ONCE)
    )
    expected: dict[str, _Lines] = {}
    columns = ", ".join(EPISODE_COLUMNS)
    for found in ahead(iter(chunks), lambda names: [*_whole_files(layout, names)]):
        expected |= {lines.segment: lines for lines in found}
        cursor.execute(
            f"INSERT INTO {STAGED} ({columns}, state, reason) SELECT {_NAMES}, 'stored', '' FROM "
            f"read_json(?, format = 'newline_delimited', columns = {{{_LINE}}})",
            [[plain(lines.path) for lines in found]],
        )
    return _checked(cursor, expected)


def _whole_files(layout: RunLayout, segments: list[str]) -> Iterator[_Lines]:
    for segment in segments:
        path = layout.root / "index" / f"{segment}.jsonl"
        with reading(path) as file:
            content = file.read()
        if not content or not all_are_whole(content):
            raise Unusual(path)
        position = Position(len(content), content.count(b"\n"))
        size = size_of(layout.episodes / f"{segment}.arrows")
        yield _Lines(segment, path, position, size)


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
