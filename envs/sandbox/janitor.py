"""The janitor: empties the scratch folders of sessions that have ended, and counts those of others.

It is a separate process, because removing a hostile tree may take a while. It follows no links and
needs two descriptors at any depth. It empties a folder only after its session's process has ended,
so nothing changes the folder at the same time.

Where sessions share one file system, no limit of the kernel holds one back from filling it with
files, empty ones too. Then it looks several times a second, and names the folders with too much.
"""

import contextlib
import os
import secrets
import select

from envs.sandbox.confine import ONLY_DESCRIPTOR, close_all_but

OVER = "over:"
"""Start of the message that names a folder with too much in it; others name one that is clean."""
_LOOK_S = 0.2
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_BLOCK = 512
"""Bytes of `st_blocks`; see stat(2)."""


class Janitor:
    """Serves the zygote from a process of its own.

    `limits` are the most files, and the most bytes, of one session; None: the kernel counts them,
    and the folders themselves stay.
    """

    def __init__(self, requests: int, path: str, limits: tuple[int, int] | None) -> None:
        self._path = path
        self._limits = limits
        self._requests = requests
        self._used: tuple[int, int] | None = None

    def serve(self) -> None:
        """Empty folders until the zygote has ended, and then all of them; never returns.

        At level `namespaces` the kernel removes the janitor and the folders together with it.
        """
        try:
            close_all_but(self._requests)
            poll = select.poll()
            poll.register(ONLY_DESCRIPTOR, select.POLLIN)
            with contextlib.suppress(ConnectionError):  # the zygote has ended
                while True:
                    if not poll.poll(_LOOK_S * 1_000 if self._limits else None):
                        self._count()
                    elif path := os.read(ONLY_DESCRIPTOR, 4096).decode():
                        self._empty(path)
                        self._count()
                    else:
                        break
            empty_folder(self._path)
            os._exit(0)
        finally:
            os._exit(70)

    def _empty(self, path: str) -> None:
        empty_folder(path)
        if self._limits:
            os.rmdir(path)
        os.write(ONLY_DESCRIPTOR, path.encode())

    def _count(self) -> None:
        """Name the folders with too much, unless the file system is as full as before."""
        if self._limits is None:
            return
        whole = os.statvfs(self._path)
        used = whole.f_files - whole.f_ffree, whole.f_blocks - whole.f_bfree
        if used == self._used and whole.f_files:  # some file systems do not count files
            return
        self._used = used
        most_files, most_bytes = self._limits
        with os.scandir(self._path) as folders:
            for folder in folders:
                if is_over(folder.path, most_files, most_bytes):
                    os.write(ONLY_DESCRIPTOR, f"{OVER}{folder.path}".encode())


def is_over(path: str, most_files: int, most_bytes: int) -> bool:
    """Return whether more than that is below `path`, which may change meanwhile.

    Holds a descriptor for each level, because paths may be too long; what is too deep for that is
    too much. A folder that may not be opened is empty: its session cannot open it either.
    """
    files = size = 0
    levels: list[tuple[int, list[str]]] = []
    try:
        levels.append((os.open(path, _FOLDER), [""]))
        while levels:
            above, names = levels[-1]
            if not names:
                os.close(levels.pop()[0])
                continue
            name = names.pop()
            try:
                folder = os.open(name or ".", _FOLDER, dir_fd=above)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue
            levels.append((folder, []))
            with os.scandir(folder) as entries:
                for entry in entries:
                    files += 1
                    if entry.is_dir(follow_symlinks=False):
                        levels[-1][1].append(entry.name)
                    else:
                        size += _bytes_of(entry)
                    if files > most_files or size > most_bytes:
                        return True
        return False
    except (FileNotFoundError, NotADirectoryError):
        return False  # the session has ended
    except OSError:
        return True
    finally:
        for folder, _ in levels:
            os.close(folder)


def _bytes_of(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks * _BLOCK
    except FileNotFoundError:
        return 0


def empty_folder(path: str) -> None:
    """Remove everything in `path`, however deep or large, and whatever its permissions are.

    Deep folders are moved up to `path` before they are emptied, so that no long path and no deep
    recursion is needed.
    """
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        left = True
        while left:
            left = False
            with os.scandir(top) as entries:
                for entry in entries:
                    left = True
                    _remove(entry, top, top)
    finally:
        os.close(top)


def _remove(entry: os.DirEntry[str], folder: int, top: int) -> None:
    if not entry.is_dir(follow_symlinks=False):
        os.unlink(entry.name, dir_fd=folder)
        return
    try:
        os.rmdir(entry.name, dir_fd=folder)
    except OSError:
        os.chmod(entry.name, 0o700, dir_fd=folder)
        if folder != top:  # emptied in a later round; recursion stays one level deep
            os.rename(entry.name, secrets.token_hex(16), src_dir_fd=folder, dst_dir_fd=top)
            return
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        inner = os.open(entry.name, flags, dir_fd=folder)
        try:
            with os.scandir(inner) as entries:
                for below in entries:
                    _remove(below, inner, top)
        finally:
            os.close(inner)
