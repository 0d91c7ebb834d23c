"""Recorded tool traffic: a recorder that observes a host's sessions, and a reader of its files."""

import json
import logging
import os
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Thread
from typing import get_args

from envs.config import ToolServerConfig
from envs.endpoints import Endpoint
from envs.errors import ConfigError, MissingError, StoreError
from envs.server.traffic_file import (
    MAGIC,
    SUFFIX,
    Entry,
    Kind,
    answer_of,
    answered_entry,
    closed_entry,
    entries,
    open_record,
    opened_entry,
    read_entry,
    tool_set_entry,
)
from envs.server.wire import EncodedCall, OpenItem
from envs.tools import SessionPurpose, ToolAnswer, ToolSet

QUEUE_BYTES = 64 * 2**20
"""Bytes that may wait for the disk. Beyond it the recording ends, so that memory does not run out.
"""
_KNOWN_TOOL_SETS = 4_096
_PURPOSES: dict[str, SessionPurpose] = {name: name for name in get_args(SessionPurpose)}
_GATHER_S = 0.01
"""How long the writer collects entries, in seconds, to write them with one system call."""

_log = logging.getLogger(__name__)


class TrafficRecorder:
    """SessionObserver that writes sessions and calls to a new file in `folder`, in its own thread.

    An event reaches the file within about 10 ms; `close` writes the rest. If the disk refuses the
    data, or is slower than the traffic, the recording ends with one error in the log. `lost_events`
    counts the events after that, and what was written before stays readable.
    """

    def __init__(
        self,
        folder: Path,
        queue_bytes: int = QUEUE_BYTES,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Raises StoreError if no file can be created."""
        self.path, self._fd = _new_file(folder)
        self._queue_bytes = queue_bytes
        self._now = now
        self._size = len(MAGIC)
        self._known: OrderedDict[str, None] = OrderedDict()
        self._entries: list[bytes] = []
        self._waiting = 0
        self._closing = False
        self._broken = False
        self._changed = Condition()
        self.error = ""
        """Reason why the recording ended; empty while it continues."""
        self.lost_events = 0
        self._thread = Thread(target=self._write_all, name="traffic", daemon=True)
        self._thread.start()

    def opened(self, session_id: str, item: OpenItem, tool_set: ToolSet) -> None:
        fresh = item.digest not in self._known
        self._known[item.digest] = None
        self._known.move_to_end(item.digest)
        if len(self._known) > _KNOWN_TOOL_SETS:
            self._known.popitem(last=False)
        first = tool_set_entry(tool_set) if fresh else b""
        self._append(first + opened_entry(session_id, item, self._now()))

    def answered(self, session_id: str, call: EncodedCall, answer: ToolAnswer) -> None:
        self._append(answered_entry(session_id, call, answer))

    def closed(self, session_id: str) -> None:
        self._append(closed_entry(session_id))

    def close(self) -> None:
        """Write what remains and end; harmless if it has ended."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _append(self, entry: bytes) -> None:
        with self._changed:
            if self.error or self._closing:
                self.lost_events += 1
                return
            if self._waiting + len(entry) > self._queue_bytes:
                self._end(f"more than {self._queue_bytes} bytes wait for a disk that is too slow")
                self.lost_events += 1
                return
            if not self._entries:
                self._changed.notify()
            self._entries.append(entry)
            self._waiting += len(entry)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closing)
                self._changed.wait_for(lambda: self._closing, timeout=_GATHER_S)
                batch, self._entries = self._entries, []
                ended = self._closing and not batch
            if ended:
                os.close(self._fd)
                return
            self._write(batch)
            with self._changed:
                self._waiting -= sum(map(len, batch))

    def _write(self, batch: list[bytes]) -> None:
        if self._broken:
            return
        content = memoryview(b"".join(batch))
        size = len(content)
        try:
            while content:
                content = content[os.write(self._fd, content) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
            self._broken = True
            with self._changed:
                self._end(error.strerror or repr(error))
                self.lost_events += len(batch)
            return
        self._size += size

    def _end(self, reason: str) -> None:
        if self.error:
            return
        self.error = (
            f"recording of tool traffic ended: {self.path}: {reason}. Calls continue, and what was "
            "recorded before is intact. Free disk space and restart the server to record again"
        )
        _log.error(self.error)


def recorder_for(config: ToolServerConfig) -> TrafficRecorder | None:
    """Return the recorder that `config` asks for, or None if it records nothing.

    Raises ConfigError if it names no folder, StoreError if no file can be created there.
    """
    if not config.record:
        return None
    if not config.record_dir:
        raise ConfigError(
            "expected a folder for the record of tool traffic (tools.record is true), found none: "
            "set tools.record_dir"
        )
    return TrafficRecorder(Path(config.record_dir))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSession:
    """A session of a record; `answers` are the byte offsets of its calls in the file `path`."""

    id: str
    digest: str
    seed: int
    purpose: SessionPurpose
    opened_at: float
    """Unix seconds."""
    episode: str
    """Id of the episode attempt that it belongs to; empty if the recording client gave none."""
    path: Path
    offset: int
    answers: "array[int]" = field(default_factory=lambda: array("Q"))


class TrafficReader:
    """Index of everything recorded below `folder`; the answers themselves stay on disk."""

    def __init__(self, folder: Path) -> None:
        """Read every file. Raises MissingError if there is none, StoreError if one is not valid."""
        paths = sorted(folder.rglob(f"*{SUFFIX}")) if folder.is_dir() else []
        if not paths:
            raise MissingError(
                f"expected recorded tool traffic below {folder}, found no *{SUFFIX} file: record "
                "it first, with tools.record = true in a run or --record DIR of a tool server"
            )
        self.tool_sets: dict[str, tuple[Path, int]] = {}
        """File and byte offset of each tool set's content, by digest."""
        self._sessions: list[RecordedSession] = []
        self._fds: dict[Path, int] = {}
        for path in paths:
            self._index(path)
        self._sessions.sort(key=lambda session: session.opened_at)

    @property
    def sessions(self) -> list[RecordedSession]:
        """Recorded sessions in the order in which they were opened."""
        return self._sessions

    def tool_set(self, digest: str) -> ToolSet:
        """Return the recorded content of a set of code. Raises KeyError if it was not recorded."""
        _, _, content = read_entry(*self._where(self.tool_sets[digest]))[0]
        return ToolSet.model_validate_json(str(content))

    def tools_of(self, endpoint: Endpoint) -> ToolSet | None:
        """Return the recorded tools of `endpoint`; those of another one, if there are only such;
        None if no tools of endpoints are in the record.
        """
        found: ToolSet | None = None
        for digest, place in self.tool_sets.items():
            content = json.loads(str(read_entry(*self._where(place))[0][2]))
            if "endpoint" in content:  # that of a set of code is null
                continue
            found = ToolSet.model_validate({**content, "endpoint": endpoint})
            if found.digest == digest:
                break
        return found

    def answer(self, session: RecordedSession, index: int) -> tuple[EncodedCall, ToolAnswer]:
        """Return call number `index` of a session and its answer, exactly as recorded."""
        entry, _ = read_entry(*self._where((session.path, session.answers[index])))
        return answer_of(entry)

    def copy(self, sessions: Iterable[RecordedSession], folder: Path) -> None:
        """Write only these sessions to a new record in `folder`. Raises StoreError."""
        _, fd = _new_file(folder)
        known: set[str] = set()
        with os.fdopen(fd, "ab") as file:
            for session in sessions:
                if session.digest not in known and session.digest in self.tool_sets:
                    known.add(session.digest)
                    file.write(read_entry(*self._where(self.tool_sets[session.digest]))[1])
                for offset in (session.offset, *session.answers):
                    file.write(read_entry(*self._where((session.path, offset)))[1])

    def close(self) -> None:
        """Close the files."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _where(self, place: tuple[Path, int]) -> tuple[int, int]:
        path, offset = place
        if path not in self._fds:
            self._fds[path] = open_record(path)
        return self._fds[path], offset

    def _index(self, path: Path) -> None:
        found: dict[str, RecordedSession] = {}
        for offset, entry in entries(path):
            match entry:
                case [Kind.TOOL_SET, str() as digest, _]:
                    self.tool_sets.setdefault(digest, (path, offset))
                case [Kind.OPENED, str() as name, str(), int(), _, _, *_]:
                    found[name] = _opened_session(entry, path, offset)
                case [Kind.ANSWERED, str() as name, *_] if name in found:
                    found[name].answers.append(offset)
                case [Kind.CLOSED, _]:
                    pass
                case _:
                    raise StoreError(
                        f"{path}: expected an entry of recorded traffic at byte {offset}, found "
                        f"{str(entry)[:80]}: it was written by another version of trialrun"
                    )
        self._sessions += found.values()


def _opened_session(entry: Entry, path: Path, offset: int) -> RecordedSession:
    _, name, digest, seed, purpose, opened_at, *episode = entry
    if not isinstance(opened_at, int | float):
        raise StoreError(f"{path}: expected a time at byte {offset}, found {str(opened_at)[:80]}")
    return RecordedSession(
        id=str(name),
        digest=str(digest),
        seed=int(seed),
        purpose=_PURPOSES.get(str(purpose), "execution"),
        opened_at=float(opened_at),
        episode=str(episode[0]) if episode else "",
        path=path,
        offset=offset,
    )


def _new_file(folder: Path) -> tuple[Path, int]:
    """Create the next file of `folder`; O_EXCL gives no two processes the same one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = folder / f"{number:06d}{SUFFIX}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            try:
                fd = os.open(path, flags, 0o600)
            except FileExistsError:
                number += 1
                continue
            os.write(fd, MAGIC)
            return path, fd
    except OSError as error:
        raise StoreError(
            f"could not create a file for tool traffic in {folder}: {error.strerror}: choose "
            "another folder, or free disk space"
        ) from error
