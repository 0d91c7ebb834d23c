"""Files of a run directory, opened so that somebody else's directory is no trap.

A run directory holds plain files. A symbolic link in it would have a command write to a file
elsewhere, and a named pipe would let it wait for ever: both are refused.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from envs.errors import StoreError


class NotPlainError(StoreError, OSError):
    """What should be a file of a run directory is something else; for readers that show what can be
    read, one more file that cannot.
    """


_ALWAYS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Not to wait matters for named pipes alone: it changes nothing for plain files."""
_NEW_FILE = 0o644


def open_regular(path: Path, flags: int) -> int:
    """Return a descriptor of the plain file `path`, opened with `flags` of `os.open`.

    Raises StoreError where it is something else, and OSError.
    """
    if path.is_symlink():
        raise _refusal(path, "a symbolic link")
    fd = os.open(path, flags | _ALWAYS, _NEW_FILE)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _refusal(path, "something else")
    return fd


def reading(path: Path) -> BinaryIO:
    """Open the plain file `path` for reading. Raises as `open_regular` does."""
    return os.fdopen(open_regular(path, os.O_RDONLY), "rb")


def plain(path: Path) -> str:
    """Return `path` for a library that opens files by itself. Raises as `open_regular` does."""
    os.close(open_regular(path, os.O_RDONLY))
    return str(path)


def check_folders(folders: Iterable[Path]) -> None:
    """Check that `folders` of a run directory are no links. Raises StoreError."""
    for folder in folders:
        if folder.is_symlink():
            raise _refusal(folder, "a symbolic link")


def _refusal(path: Path, found: str) -> NotPlainError:
    return NotPlainError(
        f"expected a plain file or folder, found {found} at {path}: a run directory holds none, "
        "for it could lead to files elsewhere; put what it leads to in its place"
    )
