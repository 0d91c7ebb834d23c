"""Append-only files: one write per entry, a torn last line is ignored, a failed write is undone."""

import json
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import JsonValue

from envs.errors import StoreError
from rollout.store.line_checks import LineChecks, check_holes, with_checksum
from rollout.store.regular_files import NotPlainError, open_regular
from rollout.store.shared_files import read_bytes, rename_file, visible


class AppendFile:
    """An append-only file with one write per entry and one writer at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        except NotPlainError:
            raise
        except OSError as error:
            raise StoreError(f"could not open {path} for writing: {error.strerror}") from error
        self.size = os.fstat(self._fd).st_size

    def append(self, payload: bytes, what: str) -> int:
        """Write `payload` at the end and return its offset in bytes.

        Raises StoreError naming `what` if the write fails; the file is then as it was before.
        """
        start, rest = self.size, memoryview(payload)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            with suppress(OSError):  # what is left of it is an incomplete line, which nobody reads
                os.ftruncate(self._fd, start)
            raise StoreError(
                f"could not write {what} to {self.path}: {error.strerror}. It is not stored; "
                "everything written before it is intact. Make room and resume the run"
            ) from error
        self.size = start + len(payload)
        return start

    def cut(self, size: int) -> None:
        """Truncate the file to `size` bytes."""
        os.ftruncate(self._fd, size)
        self.size = size

    def sync(self) -> None:
        """Force appended bytes to the disk. Raises StoreError: some file systems find out only now
        that they are full.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise StoreError(
                f"could not force {self.path} to the disk: {error.strerror}. What was written "
                "since the last step may be lost. Make room and resume the run"
            ) from error

    def close(self) -> None:
        """Raises StoreError: network file systems report some errors of writes only now."""
        try:
            os.close(self._fd)
        except OSError as error:
            raise StoreError(
                f"could not close {self.path}: {error.strerror}. What was written since the last "
                "step may be lost. Make room and resume the run"
            ) from error


class Closing(ABC):
    """Base class of objects that a `with` block closes."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Journal(Closing):
    """Append-only JSON lines with checksums (`line_checks`); opening a journal cuts off an
    incomplete last line left by a kill.
    """

    def __init__(self, path: Path) -> None:
        self._file = AppendFile(path)
        content = read_bytes(path)
        whole = visible(content)
        if content[len(whole) :].strip(b"\0"):
            self._file.close()
            raise StoreError(
                f"{path}: expected lines of JSON, found zero bytes at offset {len(whole)} and text "
                "after them: the file system has lost a part of it. Restore the file from a copy"
            )
        self._file.cut(whole.rfind(b"\n") + 1)

    def append(self, lines: Iterable[str], what: str) -> None:
        """Append JSON objects, one per line, with a single write. Raises StoreError."""
        self._file.append("".join(f"{with_checksum(line)}\n" for line in lines).encode(), what)

    def sync(self) -> None:
        """Force appended lines to the disk."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def whole_lines(path: Path, start: int = 0) -> bytes:
    """Return a journal from byte `start` to its last complete line; empty if it does not exist.

    The lines are as they are in the file, with their checksums. Raises StoreError.
    """
    try:
        content = read_bytes(path, start)
    except FileNotFoundError:
        return b""
    seen = visible(content)
    check_holes(path, content, len(seen))
    return seen[: seen.rfind(b"\n") + 1]


def plain_lines(path: Path) -> list[bytes]:
    """Return the complete lines of a journal as they were written, checked and without checksums.

    Raises StoreError, which names a line that was changed.
    """
    checks = LineChecks(path)
    return [checks.plain(line) for line in whole_lines(path).splitlines()]


class JournalTail:
    """Reads a journal that another process may be writing: each call returns what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._checks = LineChecks(path)

    def skip_to_end(self) -> None:
        """Ignore the entries that the journal holds now."""
        content = self._next_lines()
        self._checks.lines += content.count(b"\n")

    def read(self) -> list[dict[str, JsonValue]]:
        """Return the entries since the last call, as JSON objects; none if the file is missing.

        Raises StoreError naming a line that is not a JSON object, or was changed.
        """
        return [self._row(self._checks.plain(line)) for line in self._next_lines().splitlines()]

    def _next_lines(self) -> bytes:
        content = whole_lines(self._path, self._offset)
        self._offset += len(content)
        return content

    def _row(self, line: bytes) -> dict[str, JsonValue]:
        where = f"{self._path}:{self._checks.lines}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise StoreError(f"{where}: expected a JSON object, found {line[:80]!r}")
        return row


def read_objects(path: Path) -> list[dict[str, JsonValue]]:
    """Return every entry of a journal as a JSON object. Raises StoreError naming a bad line."""
    return JournalTail(path).read()


def make_folder(path: Path) -> None:
    """Create the folder `path` and its parents if they do not exist. Raises StoreError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"could not make the folder {path}: {error.strerror}") from error


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Replace the file `path` atomically: readers see the old content or the new, never a mix."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with os.fdopen(open_regular(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        rename_file(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise StoreError(
            f"could not write {path}: {error.strerror}. Its previous content is intact"
        ) from error


def one_line(row: Mapping[str, JsonValue]) -> str:
    """Return `row` as one line of strict JSON. Raises ValueError for NaN and infinities."""
    return json.dumps(row, allow_nan=False, ensure_ascii=False)
