"""Files that only grow: whole writes, a torn end is no entry, a failed write leaves no trace."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import JsonValue

from envs.errors import StoreError


class AppendFile:
    """A file that is appended to with one write call per entry; one writer at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"could not open {path} for writing: {error.strerror}") from error
        self.size = os.fstat(self._fd).st_size

    def append(self, payload: bytes, what: str) -> int:
        """Write `payload` at the end and return its offset.

        Raises StoreError naming `what`, the file as it was before, when the disk does not take it.
        """
        start, rest = self.size, memoryview(payload)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            os.ftruncate(self._fd, start)
            raise StoreError(
                f"could not write {what} to {self.path}: {error.strerror}. It is not stored; "
                "everything written before it is intact. Make room and resume the run"
            ) from error
        self.size = start + len(payload)
        return start

    def cut(self, size: int) -> None:
        """Drop what lies behind `size` bytes."""
        os.ftruncate(self._fd, size)
        self.size = size

    def sync(self) -> None:
        """Force what was appended to the disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class Closing(ABC):
    """What is closed at the end of a `with` block."""

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
    """JSON lines that only grow; opening one cuts off a line that a kill left torn."""

    def __init__(self, path: Path) -> None:
        self._file = AppendFile(path)
        self._file.cut(path.read_bytes().rfind(b"\n") + 1)

    def append(self, lines: Iterable[str], what: str) -> None:
        """Append JSON texts, one to a line, with a single write. Raises StoreError."""
        self._file.append("".join(f"{line}\n" for line in lines).encode(), what)

    def sync(self) -> None:
        """Force what was appended to the disk."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def whole_lines(path: Path, start: int = 0) -> bytes:
    """Return a journal from byte `start` to its last finished line; nothing where it is missing."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read()
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]


def read_objects(path: Path) -> list[dict[str, JsonValue]]:
    """Return the journal's lines as JSON objects. Raises StoreError naming a line that is none."""
    rows: list[dict[str, JsonValue]] = []
    for number, line in enumerate(whole_lines(path).splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise StoreError(
                f"{path}:{number}: expected a JSON object, found {line[:80]!r}"
            ) from error
        if not isinstance(row, dict):
            raise StoreError(f"{path}:{number}: expected a JSON object, found {line[:80]!r}")
        rows.append(row)
    return rows


def make_folder(path: Path) -> None:
    """Make `path` and what is above it, where it is not there. Raises StoreError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"could not make the folder {path}: {error.strerror}") from error


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write `path` as a whole: readers see the old content or the new, never a part."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise StoreError(
            f"could not write {path}: {error.strerror}. What was there before is intact"
        ) from error


def one_line(row: Mapping[str, JsonValue]) -> str:
    """Return `row` as one line of strict JSON. Raises ValueError for NaN and infinities."""
    return json.dumps(row, allow_nan=False, ensure_ascii=False)
