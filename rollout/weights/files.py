"""Two files of shared memory that hold policy versions, written alternately. No torch."""

import errno
import fcntl
import mmap
import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

from envs.errors import WeightSyncError

_FOLDER = "trialrun-weights-"
"""Of the folder of a user, followed by the user's number."""
_PREFIX = "policy-"


class WeightFile:
    """One locked, mapped file of a fixed size."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        # For this user alone: the weights of a model may be worth something.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file: BinaryIO = os.fdopen(fd, "rb+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.stat()  # another writer that is starting may have removed it
            # takes the pages now: running out of memory is an error here, a SIGBUS later
            os.posix_fallocate(self._file.fileno(), 0, max(nbytes, 1))
            self.map = mmap.mmap(self._file.fileno(), max(nbytes, 1))
        except OSError as error:
            self._file.close()
            path.unlink(missing_ok=True)
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise WeightSyncError(
                    f"{path.parent}: expected a file system with locks (flock), found none "
                    f"({error.strerror}): set cluster.shm_dir to a folder in memory, as /dev/shm"
                ) from error
            raise

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()


class WeightFiles:
    """Two files of `nbytes` in a folder of this user's below `directory` (a tmpfs, as /dev/shm).

    Each is locked while its writer is running, so a new writer recognises and removes the files
    of a killed run. Raises WeightSyncError if the folder has too little room or is not this user's.
    """

    def __init__(self, directory: Path, nbytes: int) -> None:
        directory = _own_folder(directory)
        _reclaim(directory)
        run = secrets.token_hex(8)
        self._files: list[WeightFile] = []
        try:
            for index in range(2):
                self._files.append(WeightFile(directory / f"{_PREFIX}{run}-{index}", nbytes))
        except WeightSyncError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise WeightSyncError(
                f"expected room for two buffers of {nbytes} bytes in {directory}, found: {error}"
            ) from error

    @property
    def both(self) -> tuple[WeightFile, ...]:
        return tuple(self._files)

    @property
    def next(self) -> WeightFile:
        """The file to write next."""
        return self._files[0]

    def turn(self) -> None:
        """Swap the files: the one just written stays unchanged until the other one is written."""
        self._files.reverse()

    def close(self) -> None:
        """Remove the files; the memory is freed once no engine maps it."""
        for file in self._files:
            file.close()
        self._files.clear()


def _own_folder(directory: Path) -> Path:
    """Return the folder of this user's, which is made where it is not there.

    Everybody may write to /dev/shm, so another user may have made something under its name.
    """
    folder = directory / f"{_FOLDER}{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise WeightSyncError(
                f"expected {folder} to be a folder of user {os.getuid()}, found something of user "
                f"{found.st_uid}: remove it, or set cluster.shm_dir to another folder in memory"
            )
        if found.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise WeightSyncError(f"expected a folder {folder}, found: {error}") from error
    return folder


def _reclaim(directory: Path) -> None:
    """Remove files whose writer has ended; the kernel releases the lock of any dead process."""
    for path in directory.glob(f"{_PREFIX}*"):
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except OSError:  # it is in use, gone or another user's, or there are no locks
            continue
