"""Segments: append-only Arrow streams of episodes, each with an index of their positions.

A segment `000001.arrows` is an Arrow IPC stream without an end marker: a schema message, then
record batch messages of at most 8 episodes, so that reading one episode reads little. Its index
`000001.jsonl` has one narrow line per episode with the offset of its message. The segment is
authoritative and the index is a cache: episodes that the index lacks, because it is incomplete,
missing or behind a running writer, are found by scanning the segment. An incomplete message at the
end is ignored.

The index also has the checksum of each message. What is read is checked against it and against
Arrow's own rules before anything uses it: bytes that changed on a disk are an error, not other
data.
"""

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path

import pyarrow as pa

from envs.errors import StoreError
from rollout.episode_schema import EPISODE_SCHEMA, ragged, schema_version, upgrade
from rollout.store.journal import AppendFile, Journal, one_line, whole_lines
from rollout.store.line_checks import LineChecks
from rollout.store.regular_files import reading
from rollout.store.shared_files import again_if_stale

ROWS_PER_BATCH = 8
_COPIED = (
    "run",
    "episode",
    "group",
    "task",
    "sample_index",
    "attempt",
    "environment",
    "split",
    "mode",
    "source",
    "outcome",
    "reward",
    "oldest_version",
    "started_at",
    "wall_s",
)
_TORN = (pa.ArrowException, OSError, EOFError)
_DAMAGED = (*_TORN, ValueError, KeyError)
"""What damaged bytes raise: text that is no UTF-8 is a ValueError, a missing column a KeyError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRow:
    """The narrow row of an episode: the columns of tables and filters, and its position on disk."""

    run: str
    episode: str
    group: str
    task: str
    sample_index: int
    attempt: int
    environment: str
    split: str
    mode: str
    source: str
    outcome: str
    reward: float | None
    oldest_version: int
    started_at: float
    wall_s: float
    tokens: int
    """Length of the token arrays."""
    segment: str
    """Number of the segment, as in its file name."""
    offset: int
    """Byte offset in the segment of the message that holds the episode."""
    nbytes: int
    """Size of that message in bytes."""
    row: int
    """Row of the episode within that message."""
    crc: int | None = None
    """CRC-32 of that message; None in segments of older versions."""


class SegmentWriter:
    """Writes one new segment and its index."""

    def __init__(self, episodes: Path, index: Path, name: str) -> None:
        self.name = name
        path = episodes / f"{name}.arrows"
        if path.exists():
            raise StoreError(f"expected a new segment, found {path}: segments are never reopened")
        self._file = AppendFile(path)
        self._index = Journal(index / f"{name}.jsonl")
        self._file.append(EPISODE_SCHEMA.serialize().to_pybytes(), "the header of a segment")

    @property
    def nbytes(self) -> int:
        """Bytes in the segment."""
        return self._file.size

    def append(self, batch: pa.RecordBatch) -> None:
        """Store the episodes of `batch` with one write. Raises StoreError and then stores none."""
        pieces = [batch.slice(i, ROWS_PER_BATCH) for i in range(0, len(batch), ROWS_PER_BATCH)]
        messages = [piece.serialize() for piece in pieces]
        ids = batch.column("episode").to_pylist()
        what = f"{len(ids)} episodes ({', '.join(ids[:4])}{', ...' if len(ids) > 4 else ''})"
        offset = self._file.append(b"".join(messages), what)
        lines: list[str] = []
        for piece, message in zip(pieces, messages, strict=True):
            crc = zlib.crc32(message)
            rows = narrow_rows(piece, self.name, offset, message.size, crc)
            lines.extend(one_line(asdict(row)) for row in rows)
            offset += message.size
        self._index.append(lines, f"the index of {what}, which are themselves stored,")

    def sync(self) -> None:
        """Force segment and index to the disk."""
        self._file.sync()
        self._index.sync()

    def close(self) -> None:
        self._file.close()
        self._index.close()


class SegmentReader:
    """Reads one segment, whether its writer is running, has finished or was killed."""

    def __init__(self, segment: Path, index: Path) -> None:
        self._path = segment
        self._index_path = index
        self._index_read = 0
        self._schema: pa.Schema | None = None
        self._end = 0
        self._crcs: dict[int, int | None] = {}
        """Checksums of indexed messages that are not read yet, by offset."""
        self.rows: list[EpisodeRow] = []

    def refresh(self) -> None:
        """Read the complete episodes that were appended since the last call."""
        again_if_stale(self._refresh, self._path)

    def read(self, row: EpisodeRow) -> pa.RecordBatch:
        """Return the episode of `row` as a batch with one row, in the current version.

        Raises StoreError where the segment or its index is damaged.
        """

        def read() -> bytes:
            with reading(self._path) as file:
                file.seek(row.offset)
                return file.read(row.nbytes)

        content = again_if_stale(read, self._path)
        if row.crc is not None and zlib.crc32(content) != row.crc:
            raise self._damaged(row, "its bytes have another checksum than when they were written")
        try:
            message = pa.ipc.read_message(pa.py_buffer(content))
            batch = checked_batch(message, self._schema)
        except _DAMAGED as error:
            raise self._damaged(row, str(error)[:200] or type(error).__name__) from error
        found = narrow_rows(batch, row.segment, row.offset, row.nbytes, row.crc)
        if not 0 <= row.row < len(found) or _differs(found[row.row], row):
            raise self._damaged(row, "its index says otherwise")
        return batch.slice(row.row, 1)

    def _damaged(self, row: EpisodeRow, why: str) -> StoreError:
        return StoreError(
            f"episode {row.episode} at byte {row.offset} of {self._path} is damaged: {why}. "
            "Restore the file from a copy"
        )

    def _refresh(self) -> None:
        with reading(self._path) as file:
            size = os.fstat(file.fileno()).st_size
            if self._schema is None and not self._read_header(file.read()):
                self._check_header(size)
                return
            self._take_index(size)
            if self._end < size:
                file.seek(self._end)
                self._scan(file.read())

    def _check_header(self, size: int) -> None:
        """Raise StoreError where the header of a segment of `size` bytes is damaged, and not cut
        off: the first episode lies behind it.
        """
        first = next(_index_rows(whole_lines(self._index_path)), None)
        if first is not None and first.offset < size:
            raise StoreError(
                f"expected a segment of episodes, found a damaged header in {self._path}: restore "
                "the file from a copy"
            )

    def _read_header(self, content: bytes) -> bool:
        stream = pa.BufferReader(content)
        try:
            message = pa.ipc.read_message(stream)
            self._schema = pa.ipc.read_schema(message)
        except _TORN:
            return False
        schema_version(self._schema)
        self._end = stream.tell()
        return True

    def _take_index(self, size: int) -> None:
        """Add indexed messages that start where the known ones end, until a line does not fit.

        The last message is left to the scan, because its index lines may be incomplete; so is all
        that follows a line that does not fit.
        """
        content = whole_lines(self._index_path, self._index_read)
        self._index_read += len(content)
        messages = [list(rows) for _, rows in groupby(_index_rows(content), attrgetter("offset"))]
        messages = [rows for rows in messages if rows[0].offset >= self._end]
        self._crcs = {rows[0].offset: rows[0].crc for rows in messages} | self._crcs
        for rows, following in pairwise(messages):
            end = rows[0].offset + rows[0].nbytes
            fits = rows[0].offset == self._end and end == following[0].offset and end <= size
            if not fits or not _are_counted(rows, following[:1]):
                return
            self.rows.extend(rows)
            self._end = end

    def _scan(self, content: bytes) -> None:
        first = self._end
        for batch, start, end in _batches(content, self._schema):
            crc = zlib.crc32(content[start:end])
            if self._crcs.pop(first + start, None) not in (None, crc):
                if content[end:].strip(b"\0"):
                    raise _damaged_message(first + start, "its checksum differs")
                return  # another node does not see all of it yet
            self.rows.extend(narrow_rows(batch, self._path.stem, first + start, end - start, crc))
            self._end = first + end


def _batches(content: bytes, schema: pa.Schema | None) -> Iterator[tuple[pa.RecordBatch, int, int]]:
    stream = pa.BufferReader(content)
    while True:
        start = stream.tell()
        try:
            message = pa.ipc.read_message(stream)
        except _TORN:
            return
        try:
            batch = checked_batch(message, schema)
        except _DAMAGED as error:
            # What a killed writer leaves, or another node does not see yet, is at the end.
            if content[stream.tell() :].strip(b"\0"):
                raise _damaged_message(start, str(error)) from error
            return
        yield batch, start, stream.tell()


def _damaged_message(offset: int, why: str) -> StoreError:
    return StoreError(
        f"the episodes at byte {offset} of a segment are damaged: {why}. Restore the file from a "
        "copy"
    )


def checked_batch(message: pa.Message, schema: pa.Schema | None) -> pa.RecordBatch:
    """Return the batch of a message in the current version, if all of it can be read.

    Raises ArrowException and others where it is damaged, StoreError where it is of a newer version.
    """
    batch = pa.ipc.read_record_batch(message, schema)
    batch.validate(full=True)  # reading what is not valid may end the process
    return upgrade(batch)


def _differs(found: EpisodeRow, row: EpisodeRow) -> bool:
    """Whether two rows differ; of other numbers, NaN is equal to itself."""
    return repr(found) != repr(row)


def _are_counted(*messages: list[EpisodeRow]) -> bool:
    """Whether the rows of each message are numbered from 0."""
    return all([row.row for row in rows] == list(range(len(rows))) for rows in messages)


def _index_rows(content: bytes) -> Iterator[EpisodeRow]:
    checks = LineChecks(Path())
    for line in content.splitlines():
        try:
            yield EpisodeRow(**json.loads(checks.plain(line)))
        except (ValueError, TypeError, RecursionError, StoreError):  # the scan finds the episode
            return


def narrow_rows(
    batch: pa.RecordBatch, segment: str, offset: int, nbytes: int, crc: int | None = None
) -> list[EpisodeRow]:
    """Return the narrow rows of a batch whose message, of checksum `crc`, is at `offset` of
    `segment`.
    """
    lengths = ragged(batch, "token_ids").offsets
    return [
        EpisodeRow(
            **fields,
            tokens=int(lengths[row + 1] - lengths[row]),
            segment=segment,
            offset=offset,
            nbytes=nbytes,
            row=row,
            crc=crc,
        )
        for row, fields in enumerate(batch.select(list(_COPIED)).to_pylist())
    ]
