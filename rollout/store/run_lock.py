"""The lock of a run directory: one process writes, and others can check whether one does.

It is an flock, which works between processes of one node, and between nodes on file systems where
flock does. Where the file system has no flock (NFS without its lock service, Lustre without
`-o flock`), numbered files take its place, which are created exclusively: the one with the highest
number names the host and the process that write. A process that finds that writer gone creates the
next number, so of several only one succeeds. The kernel does not note the end of a process there:
a later one on the same host looks whether it still runs; on another host the file has to be
removed by hand.
"""

import errno
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from envs.errors import StoreError
from rollout.store.run_layout import RunLayout

_TRIES, _PAUSE_S = 5, 0.02
"""Attempts and the pause between them: `is_written` holds the lock for a moment, too."""
_NO_FLOCK = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
_PROCESS_TABLE = Path("/proc")


class _NoFlockError(Exception):
    """The file system has no flock."""


@dataclass(frozen=True, slots=True)
class RunLock:
    """A lock that is held until `release`, or until the process ends."""

    fd: int
    holder: Path | None = None
    """The file that names this process, where the file system has no flock."""

    def release(self) -> None:
        """Let another process write."""
        if self.holder is not None:  # it stays, so that numbers only grow
            _write(self.holder, _NOBODY.text(), os.replace)
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class _Holder:
    """A process, as a file names it; `started` tells it from a later one with the same number."""

    host: str
    pid: int
    started: str

    @classmethod
    def this_process(cls) -> "_Holder":
        return cls(socket.gethostname(), os.getpid(), _start_of(os.getpid()))

    @classmethod
    def read(cls, path: Path) -> "_Holder":
        """Return the process that `path` names."""
        try:
            host, pid, started = path.read_text().split()
            return cls(host, int(pid), started)
        except FileNotFoundError:  # a later writer has removed it
            return _NOBODY
        except ValueError:
            return cls("unknown", 0, "?")

    @property
    def runs(self) -> bool:
        """Whether the process runs, as far as this host can know."""
        if self == _NOBODY:
            return False
        if self.host != socket.gethostname():
            return True
        return _start_of(self.pid) == self.started

    def text(self) -> str:
        return f"{self.host} {self.pid} {self.started}\n"


_NOBODY = _Holder("nobody", 0, "0")


def take_lock(layout: RunLayout) -> RunLock:
    """Take the lock. Raises StoreError if another process holds it, or if none can be had."""
    fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        for _ in range(_TRIES):
            if _locked(fd, fcntl.LOCK_EX):
                _check_holder(layout)
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return RunLock(fd)
            time.sleep(_PAUSE_S)
        writer = os.pread(fd, 64, 0).decode().strip() or "unknown"
        raise StoreError(
            f"{layout.root}: expected no other writer, found process {writer}: stop it or wait for "
            "it"
        )
    except _NoFlockError:
        try:
            return RunLock(fd, _take_holder(layout))
        except BaseException:
            os.close(fd)
            raise
    except BaseException:
        os.close(fd)
        raise


def is_written(layout: RunLayout) -> bool:
    """Whether a process has the run open for writing."""
    if any(_Holder.read(layout.lock_holder(number)).runs for number in layout.lock_holders()[-1:]):
        return True
    try:
        fd = os.open(layout.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _locked(fd, fcntl.LOCK_SH)
    except _NoFlockError:
        return False
    finally:
        os.close(fd)


def _locked(fd: int, how: int) -> bool:
    """Try to lock `fd`; return whether the lock was free and is now held."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            raise _NoFlockError from error
        raise
    return True


def _take_holder(layout: RunLayout) -> Path:
    """Create the file that names this process as the writer. Raises StoreError."""
    while True:
        number = _check_holder(layout) + 1
        mine = layout.lock_holder(number)
        try:
            _write(mine, _Holder.this_process().text(), os.link)  # fails if it exists
        except FileExistsError:
            continue
        except OSError as error:
            raise StoreError(
                f"{layout.root}: the file system has neither locks (flock) nor hard links "
                f"({error.strerror}), so two writers could not be kept apart: set run.dir to a "
                "folder on another one"
            ) from None
        numbers = layout.lock_holders()
        if numbers[-1:] == [number]:
            for older in numbers[:-1]:
                layout.lock_holder(older).unlink(missing_ok=True)
            return mine
        mine.unlink(missing_ok=True)  # others came and went since the check


def _check_holder(layout: RunLayout) -> int:
    """Return the number of the last writer, 0 for none. Raises StoreError if it may still run."""
    number = max(layout.lock_holders(), default=0)
    path = layout.lock_holder(number)
    holder = _Holder.read(path)
    if holder.runs:
        raise StoreError(
            f"{layout.root}: expected no other writer, found process {holder.pid} on "
            f"{holder.host}: stop it or wait for it. The file system has no locks (flock), so if "
            f"that process has ended, remove {path}"
        )
    return number


def _write(path: Path, text: str, place: Callable[[Path, Path], None]) -> None:
    """Write a file and `place` it at `path`: nobody sees it half written."""
    draft = path.with_name(f".{secrets.token_hex(8)}{path.name}")
    draft.write_text(text)
    try:
        place(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _start_of(pid: int) -> str:
    """Return when a process of this host started, in clock ticks since boot; empty if it ended."""
    try:
        stat = (_PROCESS_TABLE / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[19]
