"""Checksums of the lines of journals, so that bytes that changed on a disk are not taken for data.

The last key of every line is `line_crc`, the CRC-32 of the line as it is without that key: eight
hexadecimal digits. A line stays JSON that any tool reads. Older lines have none; they come before
all that have one.
"""

import re
import zlib
from difflib import SequenceMatcher
from pathlib import Path

from envs.errors import StoreError

_KEY = b',"line_crc":"'
_SUFFIX = len(_KEY) + len('00000000"}')
_DIGITS = re.compile(rb"[0-9a-f]{8}")
_LAST_PAIR = re.compile(rb',"([^"]{1,16})":"[^"]{1,16}"}$')
_ALIKE = 0.6
_SHOWN = 80
_SMALLEST_HOLE = 512
"""Zero bytes that a file system leaves of what it lost, or shows before the data has come, are
blocks. Fewer are bytes that changed."""


def with_checksum(line: str) -> str:
    """Return a line, a JSON object with at least one key, with its checksum."""
    crc = zlib.crc32(line.encode())
    return f'{line[:-1]},"line_crc":"{crc:08x}"}}'


class LineChecks:
    """Checks the lines of one journal, in order."""

    def __init__(self, path: Path, lines: int = 0) -> None:
        self._path = path
        self.lines = lines
        """How many were checked."""
        self._has_checksums = False

    def plain(self, line: bytes) -> bytes:
        """Return the next line as it was written, without its checksum and its end.

        Raises StoreError, which names file and line, where it was changed.
        """
        line = line.rstrip(b"\r\n")
        found = _split(line)
        if found is None:
            if self._has_checksums or _had_checksum(line):
                raise self.fault(line, "a line with its checksum")
            self.lines += 1
            return line
        content, crc = found
        if zlib.crc32(content) != crc:
            raise self.fault(line, f"a line of checksum {crc:08x}, which was changed")
        self._has_checksums = True
        self.lines += 1
        return content

    def fault(self, line: bytes, expected: str) -> StoreError:
        """Return the error for the next line."""
        return StoreError(
            f"{self._path}:{self.lines + 1}: expected {expected}, found {line[:_SHOWN]!r}: the "
            "file is damaged; restore it from a copy"
        )


def all_are_whole(lines: bytes) -> bool:
    """Whether each of the lines has a checksum, and that of its content; also for no line.

    It takes about two thirds of the time of looking at the lines one by one.
    """
    crc32 = zlib.crc32
    content, *others = lines.split(_KEY)
    if lines.count(b"\n") != len(others):
        return False
    try:
        for other in others:
            found = crc32(b"}", crc32(content))
            if other[8:11] != b'"}\n' or int(other[:8], 16) != found:
                return False
            content = other[11:]
    except ValueError:  # no digits
        return False
    return not content


def is_damaged(line: bytes) -> bool:
    """Whether a line has a checksum, and that of other content."""
    found = _split(line.rstrip(b"\r\n"))
    return found is not None and zlib.crc32(found[0]) != found[1]


def check_holes(path: Path, content: bytes, end: int) -> None:
    """Check what follows the visible part of a journal, which ends at byte `end` of `content`.

    Raises StoreError for single zero bytes with text behind them: no file system leaves these.
    """
    rest = content[end:]
    text = rest.lstrip(b"\0")
    if text and len(rest) - len(text) < _SMALLEST_HOLE:
        line = content.count(b"\n", 0, end) + 1
        raise StoreError(
            f"{path}: expected lines of JSON, found a zero byte in the line {line} after the ones "
            "read before: the file is damaged; restore it from a copy"
        )


def _had_checksum(line: bytes) -> bool:
    """Whether a line without a checksum ends with what looks like one, but was changed."""
    last = _LAST_PAIR.search(line)
    return last is not None and SequenceMatcher(None, last[1], b"line_crc").ratio() > _ALIKE


def _split(line: bytes) -> tuple[bytes, int] | None:
    """Return a line without its checksum, and that; None for a line without one."""
    suffix = line[-_SUFFIX:]
    if not (suffix.startswith(_KEY) and suffix.endswith(b'"}')):
        return None
    digits = suffix[len(_KEY) : -2]
    if _DIGITS.fullmatch(digits) is None:
        return None
    return line[:-_SUFFIX] + b"}", int(digits, 16)
