"""The lock of a run directory: one process writes, and others can check whether one does.

It is an flock, which works between processes of one node, and between nodes on file systems where
flock does. Where the file system has no flock (NFS without its lock service, Lustre without
`-o flock`), and on every file system that several nodes may see, where flock may end at the node
(NFS with `nolock` or `local_lock`), a file in the run directory names the writer: `lock_holder`.
"""

import errno
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

from envs.errors import StoreError
from rollout.store.lock_holder import (
    LEASE_S,
    HolderLease,
    check_holder,
    on_shared_filesystem,
    seen,
    take_holder,
)
from rollout.store.regular_files import open_regular
from rollout.store.run_layout import RunLayout

_TRIES, _PAUSE_S = 5, 0.02
"""Attempts and the pause between them: `is_written` holds the lock for a moment, too."""
_NO_FLOCK = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


class _NoFlockError(Exception):
    """The file system has no flock."""


@dataclass(frozen=True, slots=True)
class RunLock:
    """A lock that is held until `release`, or until the process ends."""

    fd: int
    lease: HolderLease | None = None
    """The file that names this process, where flock does not keep all nodes apart."""

    @property
    def holder(self) -> Path | None:
        """That file."""
        return None if self.lease is None else self.lease.path

    def check(self) -> None:
        """Raise StoreError where another process has taken the run over."""
        if self.lease is not None:
            self.lease.check()

    def release(self) -> None:
        """Let another process write."""
        if self.lease is not None:
            self.lease.release()
        os.close(self.fd)


def take_lock(layout: RunLayout, lease_s: float = LEASE_S) -> RunLock:
    """Take the lock. Raises StoreError if another process holds it, or if none can be had.

    `lease_s` is for file systems without flock between nodes: see `lock_holder`.
    """
    fd = open_regular(layout.lock, os.O_RDWR | os.O_CREAT)
    try:
        if not _has_flock(layout, fd) or on_shared_filesystem(layout.root):
            return RunLock(fd, take_holder(layout, lease_s))
        check_holder(layout)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return RunLock(fd)
    except BaseException:
        os.close(fd)
        raise


def is_written(layout: RunLayout) -> bool:
    """Whether a process has the run open for writing.

    Between nodes without flock, a writer that was killed counts for the rest of its lease.
    """
    if any(seen(layout, number).runs for number in layout.lock_holders()[-1:]):
        return True
    try:
        fd = open_regular(layout.lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _locked(fd, fcntl.LOCK_SH)
    except _NoFlockError:
        return False
    finally:
        os.close(fd)


def wait_for_silent_writer(layout: RunLayout) -> bool:
    """Return `is_written`, after waiting for the rest of the lease of a writer on another host that
    gives no sign of life; one that does is not waited for.
    """
    try:
        check_holder(layout)
    except StoreError:
        return True
    return is_written(layout)


def _has_flock(layout: RunLayout, fd: int) -> bool:
    """Lock `fd`; return whether the file system can. Raises StoreError where another process has
    the lock.
    """
    try:
        for _ in range(_TRIES):
            if _locked(fd, fcntl.LOCK_EX):
                return True
            time.sleep(_PAUSE_S)
    except _NoFlockError:
        return False
    writer = os.pread(fd, 64, 0).decode().strip() or "unknown"
    raise StoreError(
        f"{layout.root}: expected no other writer, found process {writer}: stop it or wait for it"
    )


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
