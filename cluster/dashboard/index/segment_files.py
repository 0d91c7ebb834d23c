"""Stored episodes by their place in a segment, checked before a byte of them is used.

Arrow trusts the offsets inside a batch, so one of a damaged file could make it read beyond the
end of its memory: every batch is validated first.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from envs.errors import StoreError
from rollout.episode_schema import schema_version, upgrade
from rollout.store.regular_files import reading
from rollout.store.run_layout import RunLayout

_HEADER_BYTES = 1 << 16
_TORN = (pa.ArrowException, OSError, EOFError, ValueError, KeyError, IndexError)
"""What reading damaged bytes may raise."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a message is: its segment, and its first byte and size there."""

    segment: str
    offset: int
    nbytes: int


@dataclass(slots=True)
class SegmentFiles:
    """Reads the segments of one run."""

    layout: RunLayout
    _schemas: dict[str, tuple[pa.Schema, int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def path(self, segment: str) -> Path:
        """Path of a segment."""
        return self.layout.episodes / f"{segment}.arrows"

    def header(self, segment: str) -> tuple[pa.Schema, int]:
        """Return the schema of a segment and where its first message begins.

        Raises StoreError if the header is not whole, or of a newer version.
        """
        with self._lock:
            found = self._schemas.get(segment)
        if found is None:
            found = self._read_header(segment)
            with self._lock:
                self._schemas[segment] = found
        return found

    def batch(self, place: Place) -> pa.RecordBatch:
        """Return the episodes of a message, in the current version. Raises StoreError."""
        return self.batches([place])[0]

    def batches(self, places: Sequence[Place]) -> list[pa.RecordBatch]:
        """Return the messages at `places` of one segment. Raises StoreError for a damaged one."""
        schema, _ = self.header(places[0].segment)
        found = []
        try:
            with reading(self.path(places[0].segment)) as file:
                for place in places:
                    file.seek(place.offset)
                    found.append(decoded(file.read(place.nbytes), schema))
        except _TORN as error:
            raise _damaged(places[0], error) from error
        return found

    def block(self, segment: str, start: int, end: int) -> bytes:
        """Return bytes of a segment. Raises StoreError."""
        try:
            with reading(self.path(segment)) as file:
                file.seek(start)
                return file.read(end - start)
        except OSError as error:
            raise StoreError(f"segment {segment} cannot be read: {error.strerror}") from error

    def scan(self, segment: str, start: int, end: int) -> Iterator[tuple[pa.RecordBatch, Place]]:
        """Yield the whole messages from `start` to `end` without an index, until a torn one."""
        schema, _ = self.header(segment)
        content = self.block(segment, start, end)
        stream = pa.BufferReader(content)
        while (at := stream.tell()) < len(content):
            try:
                message = pa.ipc.read_message(stream)
                batch = checked(pa.ipc.read_record_batch(message, schema))
            except _TORN:
                return
            yield batch, Place(segment, start + at, stream.tell() - at)

    def _read_header(self, segment: str) -> tuple[pa.Schema, int]:
        try:
            with reading(self.path(segment)) as file:
                stream = pa.BufferReader(file.read(_HEADER_BYTES))
            schema = pa.ipc.read_schema(pa.ipc.read_message(stream))
        except _TORN as error:
            raise StoreError(
                f"segment {segment}: expected a header, found {error or type(error).__name__}"
            ) from error
        schema_version(schema)
        return schema, stream.tell()


def decoded(content: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """Return the batch of a message. Raises what damaged bytes raise, and StoreError."""
    message = pa.ipc.read_message(pa.py_buffer(content))
    return checked(pa.ipc.read_record_batch(message, schema))


def checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return `batch` in the current version, if all of it can be read."""
    batch.validate(full=True)
    return upgrade(batch)


def _damaged(place: Place, error: Exception) -> StoreError:
    return StoreError(
        f"the episodes at byte {place.offset} of segment {place.segment} are damaged: "
        f"{str(error)[:200] or type(error).__name__}"
    )
