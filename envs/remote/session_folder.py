"""Folders of sessions in the temporary folder, each deleted with its session.

A process that is killed deletes nothing. So each folder is locked while its session lives, and
whoever makes the next one deletes those of this machine that nobody has locked.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

_TRIES = 16
"""A sweep of another process may take a folder in the moment before it is locked."""


@asynccontextmanager
async def session_folder(prefix: str) -> AsyncIterator[str]:
    """Make a folder whose name begins with `prefix` and that of this machine; delete it at the end.

    Raises OSError if there can be none.
    """
    # Where several machines share the folder, a lock may be known to one of them only.
    named = f"{prefix}{os.uname().nodename}-"
    await asyncio.to_thread(_sweep, named)
    folder, lock = _locked_folder(named)
    try:
        yield folder
    finally:
        with anyio.CancelScope(shield=True):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(named: str) -> tuple[str, int]:
    """Return a new folder, and the descriptor that holds its lock."""
    folder = ""
    for _ in range(_TRIES):
        folder = tempfile.mkdtemp(prefix=named)
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            if _lock(lock) is not False and os.fstat(lock).st_nlink:
                return folder, lock
            os.close(lock)
    raise OSError(f"{folder}: expected a folder to keep, found it taken {_TRIES} times")


def _lock(descriptor: int) -> bool | None:
    """Return whether a folder could be locked; None where the file system has no such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sweep(named: str) -> None:
    """Delete the folders that ended processes have left."""
    for path in Path(tempfile.gettempdir()).glob(f"{named}*"):
        # one that is not ours, or is gone by now
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.getuid() and _lock(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
