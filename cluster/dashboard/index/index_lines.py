"""New lines of the files in `index/`, segment by segment."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.dashboard.index.schema import INDEX_LINE
from cluster.dashboard.index.tail import Piece, Position, ahead, pieces, size_of, table_of
from rollout.store.run_layout import RunLayout


@dataclass(frozen=True, slots=True)
class Listed:
    """Some index lines of a segment; without a piece, all of them were read."""

    segment: str
    name: str
    piece: Piece | None
    whole: pa.Table
    """The rows before the first line that is none."""
    size: int
    """Of the segment, after the lines were read."""


def lines_of(segment: str) -> str:
    """Return the path of a segment's lines, below the run directory."""
    return f"index/{segment}.jsonl"


def listed_lines(layout: RunLayout, positions: Mapping[str, Position]) -> Iterator[Listed]:
    """Yield the lines of every segment after `positions`, and after those of each one nothing."""
    yield from ahead(_pieces(layout, positions), partial(_listed, layout.episodes))


def _pieces(
    layout: RunLayout, positions: Mapping[str, Position]
) -> Iterator[tuple[str, Piece | None]]:
    for segment in layout.segments():
        name = lines_of(segment)
        for piece in pieces(layout.root / name, positions.get(name, Position())):
            yield segment, piece
        yield segment, None


def _listed(episodes: Path, of: tuple[str, Piece | None]) -> Listed:
    segment, piece = of
    name = lines_of(segment)
    if piece is None:
        return Listed(segment, name, None, INDEX_LINE.empty_table(), 0)
    # Looked at after its index lines, which are written after the episodes.
    size = size_of(episodes / f"{segment}.arrows")
    table, numbers, _ = table_of(piece, INDEX_LINE, name)
    return Listed(segment, name, piece, _before_a_gap(table, numbers, piece.start.lines), size)


def _before_a_gap(table: pa.Table, numbers: pa.Array | None, read: int) -> pa.Table:
    """Return the rows before the first line that is none or lacks a field.

    `numbers` are the lines of the rows where some were left out, after `read` earlier lines. Only
    a reward may be missing.
    """
    present = np.ones(table.num_rows, bool)
    if numbers is not None:
        present &= numbers.to_numpy() == np.arange(read + 1, read + 1 + table.num_rows)
    for name in table.column_names:
        if name != "reward" and table[name].null_count:
            present &= table[name].is_valid().to_numpy()
    return table if present.all() else table.slice(0, int(np.argmin(present)))
