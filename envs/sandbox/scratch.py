"""Scratch folders: one per session, made by the zygote and removed by its janitor.

The janitor is a process of its own, for a hostile tree may take a while to remove. It follows no
links, needs two descriptors at any depth, and works on the session's folder after the session's
process has ended, so nothing moves under its hands.
"""

import contextlib
import os
import secrets
import socket
from collections import deque

from envs.errors import IsolationError
from envs.sandbox.confine import ONLY_DESCRIPTOR, Tmpfs, close_all_but
from envs.sandbox.options import ZygoteOptions

LANDLOCK_FOR_FILES = 2
"""ABI version that lets files move between folders; before it, trees could not be removed."""
_SHARED_FOLDERS = 64
"""Size of the tmpfs that sessions of profile `files` share, in scratch sizes."""
_INODES_PER_MIB = 64
_LEAST_INODES = 256
_SHARED = "scratch"


class ScratchRoot:
    """Where the scratch folders of one zygote's children lie, at the level that was achieved."""

    def __init__(self, options: ZygoteOptions) -> None:
        self._options = options
        self.path = options.server_folder if options.files else ""
        """Common parent of all scratch folders; empty where sessions have no files."""
        self.slots: deque[str] | None = None
        """Clean folders, where only these exist; None where each session gets a new one."""

    def file_systems(self) -> list[Tmpfs]:
        """What must be mounted in an otherwise empty root."""
        size_mib = self._options.scratch_mib
        if self._options.quota:
            inodes = max(_LEAST_INODES, size_mib * _INODES_PER_MIB)
            return [Tmpfs(str(slot), size_mib, inodes) for slot in range(self._options.slots)]
        if self._options.files:
            size_mib *= _SHARED_FOLDERS
            return [Tmpfs(_SHARED, size_mib, size_mib * _INODES_PER_MIB)]
        return []

    def moved(self) -> None:
        """Take note that the root is now the empty one with `file_systems`."""
        if self._options.quota:
            self.path = "/"
            self.slots = deque(f"/{slot}" for slot in range(self._options.slots))
        elif self._options.files:
            self.path = f"/{_SHARED}"

    def check(self, level: str, landlock: int) -> None:
        """Raise IsolationError where the level cannot keep the profile's promise."""
        if level == "none" or not self._options.files:
            return
        if landlock < LANDLOCK_FOR_FILES:
            raise IsolationError(
                f"expected Landlock ABI {LANDLOCK_FOR_FILES} or later for profile "
                f"{self._options.profile}, found {landlock or 'none'}; use profile compute, or "
                "Linux 5.19 or later with Landlock"
            )
        if self._options.quota and level != "namespaces":
            raise IsolationError(
                f"expected level namespaces for profile files+quota, this server has {level}; "
                "allow user namespaces, or use profile files"
            )


class Scratch:
    """Hands out empty folders and takes them back. `janitor_pid` ending ends the zygote's use."""

    def __init__(self, root: ScratchRoot) -> None:
        self._root = root
        self._dirty: deque[str] = deque()
        self._busy = False
        self._janitor, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.janitor_pid = os.fork()
        if self.janitor_pid == 0:
            _serve_janitor(theirs, root)
        theirs.close()

    def fileno(self) -> int:
        """Readable when the janitor has finished a folder: time for `finished`."""
        return self._janitor.fileno()

    def take(self) -> str:
        """Return a new empty folder. Raises OSError where there is none left."""
        if self._root.slots is None:
            path = f"{self._root.path}/{secrets.token_hex(8)}"
            os.mkdir(path, 0o700)
            return path
        if not self._root.slots:
            raise OSError("every scratch folder of this server is in use; close sessions first")
        return self._root.slots.popleft()

    def give_back(self, path: str) -> None:
        """Have `path` emptied, after its session has ended."""
        self._dirty.append(path)
        self._next()

    def finished(self) -> None:
        path = self._janitor.recv(4096).decode()
        self._busy = False
        if path and self._root.slots is not None:
            self._root.slots.append(path)
        self._next()

    def _next(self) -> None:
        if self._dirty and not self._busy:
            self._busy = True
            with contextlib.suppress(OSError):  # the janitor's end is noticed by its pid
                self._janitor.send(self._dirty.popleft().encode())


def enter(path: str) -> None:
    """Make `path` the place where this process works and keeps its temporary files."""
    os.chdir(path)
    os.environ.update(HOME=path, TMPDIR=path)


def empty_folder(path: str) -> None:
    """Remove all that is in `path`, however deep, large or without permission it is."""
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
        if folder != top:  # next in turn, and never more than one level deep
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


def _serve_janitor(requests: socket.socket, root: ScratchRoot) -> None:
    """Never returns: empties the folders that it is told, and all when the zygote has gone.

    At level `namespaces` the kernel takes the janitor and the folders along with the zygote.
    """
    try:
        close_all_but(requests.fileno())
        with contextlib.suppress(ConnectionError):  # the zygote's end, rather than a last word
            while path := os.read(ONLY_DESCRIPTOR, 4096).decode():
                empty_folder(path)
                if root.slots is None:
                    os.rmdir(path)
                os.write(ONLY_DESCRIPTOR, path.encode())
        empty_folder(root.path)
        os._exit(0)
    finally:
        os._exit(70)
