"""The file format of recorded tool traffic: framed msgpack entries, appended to a file.

A file starts with `MAGIC`. Each entry is 4 bytes length and 4 bytes CRC-32 (both big-endian), then
msgpack. An entry is an array whose first element is its kind:

    [0, digest, tool set as JSON text]                     before the first session on it;
                                                           older files have none with an endpoint
    [1, session, digest, seed, purpose, Unix seconds, episode]      opened
    [2, session, name, arguments, status, text, seconds, CPU seconds, truncated,
     tools as JSON text, done]                                answered
    [3, session]                                           closed

Kind 1 has no `episode` in files written before sessions carried one. Kind 2 has `tools` only where
the call changed the session's tools, and `done` only where it ended the environment's episode.
"""

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import msgpack
from pydantic import TypeAdapter

from envs.errors import StoreError
from envs.server.wire import EncodedCall, OpenItem
from envs.tools import AnswerStatus, ToolAnswer, ToolSet, ToolSpec

MAGIC = b"trialrun-traffic-1\n"
SUFFIX = ".traffic"
_HEADER = struct.Struct(">II")
_STEP_BYTES = 2**20
_ENTRY_START = re.compile(rb"[\x92-\x9f][\x00-\x03]")
"""What msgpack makes of an array that begins with its kind."""
_TOOLS = TypeAdapter(tuple[ToolSpec, ...])


class Kind(IntEnum):
    """The kind of an entry."""

    TOOL_SET = 0
    OPENED = 1
    ANSWERED = 2
    CLOSED = 3


Entry = list[int | float | bool | str]


def tool_set_entry(tool_set: ToolSet) -> bytes:
    """Return the entry of a tool set. Of one on an endpoint it has the tools, under the digest of
    all of it: the endpoint may hold secrets.
    """
    shown = tool_set.model_dump_json(exclude={"endpoint"} if tool_set.endpoint else None)
    return _frame([Kind.TOOL_SET, tool_set.digest, shown])


def opened_entry(session: str, item: OpenItem, at: float) -> bytes:
    """Return the entry of a session opened at `at` (Unix seconds)."""
    purpose, episode = item.purpose, item.episode
    return _frame([Kind.OPENED, session, item.digest, item.seed, purpose, at, episode])


def answered_entry(session: str, call: EncodedCall, answer: ToolAnswer) -> bytes:
    tools = "" if answer.tools is None else _TOOLS.dump_json(answer.tools).decode()
    further = [tools, True] if answer.done else [tools] if tools else []
    return _frame(
        [
            Kind.ANSWERED,
            session,
            call.name,
            call.arguments,
            answer.status.value,
            answer.text,
            answer.seconds,
            answer.cpu_seconds,
            answer.truncated,
            *further,
        ]
    )


def closed_entry(session: str) -> bytes:
    return _frame([Kind.CLOSED, session])


def answer_of(entry: Entry) -> tuple[EncodedCall, ToolAnswer]:
    """Return the call and the answer of an entry of kind ANSWERED. Raises StoreError."""
    try:
        _, _, name, arguments, status, text, seconds, cpu_seconds, truncated, *further = entry
        answer = ToolAnswer(
            status=AnswerStatus(status),
            text=str(text),
            seconds=float(seconds),
            cpu_seconds=float(cpu_seconds),
            truncated=bool(truncated),
            tools=_TOOLS.validate_json(str(further[0])) if further and further[0] else None,
            done=len(further) > 1,
        )
    except (ValueError, TypeError) as error:
        raise StoreError(f"expected a recorded answer, found {str(entry)[:80]}") from error
    return EncodedCall(name=str(name), arguments=str(arguments)), answer


def open_record(path: Path) -> int:
    """Return a descriptor of a file of recorded traffic, to read. Raises StoreError for what is no
    plain file: a record may come from somebody else.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise StoreError(f"could not read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StoreError(f"expected a plain file of recorded traffic, found another at {path}")
    return fd


def entries(path: Path) -> Iterator[tuple[int, Entry]]:
    """Yield every complete entry of the file with its offset; an incomplete last entry is ignored.

    Raises StoreError if the file does not hold recorded traffic, or is damaged before its end.
    """
    with os.fdopen(open_record(path), "rb") as file:
        magic = file.read(len(MAGIC))
        if magic != MAGIC[: len(magic)]:
            raise StoreError(
                f"{path}: expected a file of recorded tool traffic, found one that starts with "
                f"{magic[:20]!r}: move it out of this folder"
            )
        if len(magic) < len(MAGIC):
            return
        offset, content = len(MAGIC), b""
        while part := file.read(_STEP_BYTES):
            content += part
            start = 0
            while (found := _unframed(content, start)) is not None:
                entry, end = found
                yield offset + start, entry
                start = end
            content, offset = content[start:], offset + start
    if _goes_on(content):
        raise StoreError(
            f"{path}: the entry at byte {offset} is damaged, and others follow it: restore the "
            "file from a copy"
        )


def _goes_on(content: bytes) -> bool:
    """Whether a complete entry comes after the first, which is not one: then that was not cut off
    by the end of its writer, but changed later.
    """
    starts = (match.start() - _HEADER.size for match in _ENTRY_START.finditer(content))
    return any(start > 0 and _unframed(content, start) is not None for start in starts)


def read_entry(fd: int, offset: int) -> tuple[Entry, bytes]:
    """Return the entry at `offset` of an open file, and its bytes. Raises StoreError."""
    header = os.pread(fd, _HEADER.size, offset)
    length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else 0
    length = min(length, os.fstat(fd).st_size)
    found = _unframed(content := os.pread(fd, _HEADER.size + length, offset), 0)
    if found is None:
        raise StoreError(
            f"expected an entry of recorded traffic at byte {offset}, found other bytes: the file "
            "was changed after it was read first; do not write to it"
        )
    return found[0], content


def _frame(entry: Entry) -> bytes:
    payload = msgpack.packb(entry, unicode_errors="surrogatepass")
    assert payload is not None
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def _unframed(content: bytes, start: int) -> tuple[Entry, int] | None:
    """Return the entry at `start` and its end; None if it is incomplete."""
    if len(content) < start + _HEADER.size:
        return None
    length, checksum = _HEADER.unpack_from(content, start)
    begin, end = start + _HEADER.size, start + _HEADER.size + length
    if len(content) < end or zlib.crc32(memoryview(content)[begin:end]) != checksum:
        return None
    try:
        entry: Entry = msgpack.unpackb(
            memoryview(content)[begin:end], unicode_errors="surrogatepass"
        )
    except (ValueError, msgpack.UnpackException) as error:  # not written here, with a checksum
        raise StoreError(f"expected an entry of recorded traffic, found {error}") from error
    return entry, end
