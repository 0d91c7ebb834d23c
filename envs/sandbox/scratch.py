"""Scratch folders: one per session, created by the zygote and removed by its janitor.

The janitor is a separate process, because removing a hostile tree may take a while. It follows no
links and needs two descriptors at any depth. It works on a session's folder only after the
session's process has ended, so nothing changes the folder at the same time.
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
"""First Landlock ABI version that allows moving files between folders, which removal needs."""
_SHARED_FOLDERS = 64
"""Size of the tmpfs that sessions of profile `files` share, as a multiple of `scratch_mib`."""
_INODES_PER_MIB = 64
_LEAST_INODES = 256
_SHARED = "scratch"


class ScratchRoot:
    """Location of the scratch folders of one zygote's children, for the achieved level."""

    def __init__(self, options: ZygoteOptions) -> None:
        self._options = options
        self.path = options.server_folder if options.files else ""
        """Common parent of all scratch folders; empty if sessions have no files."""
        self.slots: deque[str] | None = None
        """Clean folders, if a fixed number exists; None if each session gets a new folder."""

    def file_systems(self) -> list[Tmpfs]:
        """Return the file systems to mount in the otherwise empty root."""
        size_mib = self._options.scratch_mib
        if self._options.quota:
            inodes = max(_LEAST_INODES, size_mib * _INODES_PER_MIB)
            return [Tmpfs(str(slot), size_mib, inodes) for slot in range(self._options.slots)]
        if self._options.files:
            size_mib *= _SHARED_FOLDERS
            return [Tmpfs(_SHARED, size_mib, size_mib * _INODES_PER_MIB)]
        return []

    def moved(self) -> None:
        """Set the paths after the root was replaced by the empty one with `file_systems`."""
        if self._options.quota:
            self.path = "/"
            self.slots = deque(f"/{slot}" for slot in range(self._options.slots))
        elif self._options.files:
            self.path = f"/{_SHARED}"

    def check(self, level: str, landlock: int) -> None:
        """Raise IsolationError if the level cannot enforce what the profile promises."""
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
    """Hands out empty folders and takes them back.

    If the process `janitor_pid` ends, the zygote must end as well: folders would stay dirty.
    """

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
        """Return a descriptor that is readable when `finished` must be called."""
        return self._janitor.fileno()

    def take(self) -> str:
        """Return an empty folder. Raises OSError if all are in use."""
        if self._root.slots is None:
            path = f"{self._root.path}/{secrets.token_hex(8)}"
            os.mkdir(path, 0o700)
            return path
        if not self._root.slots:
            raise OSError("all scratch folders of this server are in use; close sessions first")
        return self._root.slots.popleft()

    def give_back(self, path: str) -> None:
        """Have the janitor empty `path`; its session must have ended."""
        self._dirty.append(path)
        self._next()

    def finished(self) -> None:
        """Read the janitor's message: a folder is clean again."""
        path = self._janitor.recv(4096).decode()
        self._busy = False
        if path and self._root.slots is not None:
            self._root.slots.append(path)
        self._next()

    def _next(self) -> None:
        if self._dirty and not self._busy:
            self._busy = True
            with contextlib.suppress(OSError):  # the zygote notices the janitor's end by its pid
                self._janitor.send(self._dirty.popleft().encode())


def enter(path: str) -> None:
    """Make `path` the working, home and temporary directory of this process."""
    os.chdir(path)
    os.environ.update(HOME=path, TMPDIR=path)


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


def _serve_janitor(requests: socket.socket, root: ScratchRoot) -> None:
    """Empty the requested folders, and all folders when the zygote has ended; never returns.

    At level `namespaces` the kernel removes the janitor and the folders together with the zygote.
    """
    try:
        close_all_but(requests.fileno())
        with contextlib.suppress(ConnectionError):  # the zygote has ended
            while path := os.read(ONLY_DESCRIPTOR, 4096).decode():
                empty_folder(path)
                if root.slots is None:
                    os.rmdir(path)
                os.write(ONLY_DESCRIPTOR, path.encode())
        empty_folder(root.path)
        os._exit(0)
    finally:
        os._exit(70)
