"""New lines of a journal as an Arrow table, read in pieces; lines that are no JSON are left out."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import json as arrow_json

from cluster.dashboard.models.shared import Damage
from rollout.store.line_checks import all_are_whole, is_damaged
from rollout.store.regular_files import reading

T = TypeVar("T")
R = TypeVar("R")
PIECE_BYTES = 8 << 20
_BLOCK_BYTES = 2 << 20
_SHOWN = 80
_AHEAD = 2
"""Pieces that are parsed at once: parsing uses one core, and the index is made on two."""


@dataclass(frozen=True, slots=True)
class Position:
    """How much of a file has been read."""

    bytes: int = 0
    lines: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines of a file, where they begin, and the position after them."""

    content: bytes
    start: Position
    end: Position


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; 0 if it does not exist or cannot be looked at."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def pieces(path: Path, position: Position, most: int = PIECE_BYTES) -> Iterator[Piece]:
    """Yield the whole lines after `position`, at most about `most` bytes at once."""
    try:
        file = reading(path)
    except OSError:
        return
    with file:
        file.seek(position.bytes)
        rest = b""
        while block := file.read(most):
            rest += block
            cut = rest.rfind(b"\n") + 1
            if cut == 0:
                continue
            content, rest = rest[:cut], rest[cut:]
            lines = content.count(b"\n")
            end = Position(position.bytes + cut, position.lines + lines)
            yield Piece(content, position, end)
            position = end


def ahead(items: Iterator[T], work: Callable[[T], R]) -> Iterator[R]:
    """Yield what `work` makes of each of `items`, in order, of which threads make the next ones
    while this one is used.
    """
    with (
        ThreadPoolExecutor(1, thread_name_prefix="dashboard-read") as reader,
        ThreadPoolExecutor(_AHEAD, thread_name_prefix="dashboard-ahead") as workers,
    ):
        made: deque[Future[R]] = deque()
        coming = reader.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = reader.submit(next, items, None)
            made.append(workers.submit(work, item))
            if len(made) > _AHEAD:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()


def table_of(
    piece: Piece, schema: pa.Schema, where: str
) -> tuple[pa.Table, pa.Array | None, list[Damage]]:
    """Return the lines of `piece` in `schema`, and what was no such line.

    The array has the number of each row's line, from 1; it is None where all lines are whole, so
    that they count up from `piece.start.lines + 1`. Keys that the schema lacks are left out.
    """
    if not all_are_whole(piece.content) and any(map(is_damaged, piece.content.splitlines())):
        return _line_by_line(piece, schema, where)
    try:
        table = _parse(piece.content, schema)
        if table.num_rows == piece.end.lines - piece.start.lines:  # the reader skips empty lines
            return table, None, []
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
        pass
    return _line_by_line(piece, schema, where)


def _parse(content: bytes, schema: pa.Schema, block: int = _BLOCK_BYTES) -> pa.Table:
    if content.isspace() or not content:
        return schema.empty_table()
    options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        return arrow_json.read_json(
            BytesIO(content),
            read_options=arrow_json.ReadOptions(block_size=block, use_threads=False),
            parse_options=options,
        ).select(schema.names)
    except pa.ArrowInvalid:
        if block >= len(content):
            raise
        return _parse(content, schema, len(content))  # a line is longer than a block


def _line_by_line(
    piece: Piece, schema: pa.Schema, where: str
) -> tuple[pa.Table, pa.Array, list[Damage]]:
    tables, numbers, damage = [], [], []
    for number, line in enumerate(piece.content.splitlines(keepends=True), piece.start.lines + 1):
        try:
            if is_damaged(line) or not isinstance(json.loads(line), dict):
                raise ValueError
            table = _parse(line, schema)
        except (ValueError, RecursionError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
            shown = line[:_SHOWN].decode("utf-8", "replace").rstrip()
            damage.append(
                Damage(
                    where=f"{where}:{number}",
                    what=f"no line of this file: {shown!r}",
                    fix="the line is left out; everything else is shown",
                )
            )
            continue
        tables.append(table)
        numbers += [number] * table.num_rows
    whole = pa.concat_tables(tables) if tables else schema.empty_table()
    return whole, pa.array(numbers, pa.int64()), damage
