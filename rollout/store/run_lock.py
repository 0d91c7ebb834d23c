"""The lock of a run directory: one process writes, and others can check whether one does.

It works between processes of one node, and between nodes only on file systems where flock does.
"""

import fcntl
import os
import time

from envs.errors import StoreError
from rollout.store.run_layout import RunLayout

_TRIES, _PAUSE_S = 5, 0.02
"""Attempts and the pause between them: `is_written` holds the lock for a moment, too."""


def take_lock(layout: RunLayout) -> int:
    """Take the lock; return the descriptor that holds it until it is closed or the process ends.

    Raises StoreError if another process holds the lock.
    """
    fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    for _ in range(_TRIES):
        if _locked(fd, fcntl.LOCK_EX):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            return fd
        time.sleep(_PAUSE_S)
    writer = os.pread(fd, 64, 0).decode().strip() or "unknown"
    os.close(fd)
    raise StoreError(
        f"{layout.root}: expected no other writer, found process {writer}: stop it or wait for it"
    )


def is_written(layout: RunLayout) -> bool:
    """Whether a process has the run open for writing."""
    try:
        fd = os.open(layout.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _locked(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _locked(fd: int, how: int) -> bool:
    """Try to lock `fd`; return whether the lock was free and is now held."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
