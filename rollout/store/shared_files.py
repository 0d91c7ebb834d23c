"""Files that another node may be changing: what NFS and its like do differently from a disk.

- A file that another node replaced or removed may be gone under an open handle (ESTALE): it is
  opened again.
- A file may be seen longer than what is visible of it: the rest reads as zero bytes, which no
  line of JSON holds.
- A request whose answer was lost is sent again, and then a rename that has happened says that its
  source is missing.
- A removed file that is still open somewhere stays as `.nfs...`, and so does its folder.
"""

import errno
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from envs.errors import StoreError
from rollout.store.regular_files import reading

Result = TypeVar("Result")
_TRIES, _PAUSE_S = 6, 0.05
_REMOVED = "removed"


def again_if_stale(read: Callable[[], Result], path: Path) -> Result:
    """Return what `read` returns, which opens `path`; a stale handle is tried again.

    Raises StoreError where it stays stale, and every other error of `read`.
    """
    for number in range(_TRIES):
        try:
            return read()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        time.sleep(_PAUSE_S * 2**number)
    raise StoreError(
        f"{path}: stale file handle, {_TRIES} times: the network file system has lost the file. "
        "Mount it again on this node"
    )


def read_bytes(path: Path, start: int = 0) -> bytes:
    """Return a file from byte `start`. Raises OSError, and as `again_if_stale` does."""

    def read() -> bytes:
        with reading(path) as file:
            file.seek(start)
            return file.read()

    return again_if_stale(read, path)


def visible(content: bytes) -> bytes:
    """Return the part of a journal's content that is there: zero bytes are not."""
    end = content.find(b"\0")
    return content if end < 0 else content[:end]


def rename_file(source: Path, target: Path) -> None:
    """Rename a file onto `target`, in one piece. Raises OSError."""
    inode = source.stat().st_ino
    try:
        source.replace(target)
    except FileNotFoundError:
        if not (target.exists() and target.stat().st_ino == inode):
            raise


def remove_folder(path: Path) -> None:
    """Remove a folder, which is gone at once even if what it holds cannot be removed yet."""
    hidden = path.with_name(f".{path.name}.{_REMOVED}-{secrets.token_hex(4)}")
    try:
        path.rename(hidden)
    except FileNotFoundError:
        return
    shutil.rmtree(hidden, ignore_errors=True)


def remove_left_overs(folder: Path) -> None:
    """Remove what `remove_folder` could not at the time, as far as that is possible now."""
    for path in folder.glob(f".*.{_REMOVED}-*"):
        shutil.rmtree(path, ignore_errors=True)
