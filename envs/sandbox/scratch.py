"""Scratch folders: one per session, created by the zygote and removed by its janitor.

With a mount namespace each session has a file system of its own, whose limits the kernel keeps.
Elsewhere the folders share one file system, and `janitor.py` counts what each session has in it.
"""

import contextlib
import errno
import os
import secrets
import socket
from collections import deque

from envs.errors import IsolationError
from envs.sandbox.confine import Tmpfs
from envs.sandbox.janitor import OVER, Janitor
from envs.sandbox.options import ZygoteOptions

LANDLOCK_FOR_FILES = 2
"""First Landlock ABI version that allows moving files between folders, which removal needs."""
AT_CAPACITY = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}
)
"""Errors which say that the machine has no room for one more session now."""
_MIB = 2**20


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
        options = self._options
        slots = range(options.slots) if options.files else range(0)
        return [Tmpfs(str(slot), options.scratch_mib, options.scratch_files) for slot in slots]

    def moved(self) -> None:
        """Set the paths after the root was replaced by the empty one with `file_systems`."""
        if self._options.files:
            self.path = "/"
            self.slots = deque(f"/{slot}" for slot in range(self._options.slots))

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

    def __init__(self, root: ScratchRoot, options: ZygoteOptions) -> None:
        self._root = root
        self._session_bytes = options.scratch_mib * _MIB
        self._dirty: deque[str] = deque()
        self._busy = False
        self._janitor, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.janitor_pid = os.fork()
        if self.janitor_pid == 0:
            limits = None if root.slots else (options.scratch_files, self._session_bytes)
            Janitor(theirs.fileno(), root.path, limits).serve()
        theirs.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `finished` must be called."""
        return self._janitor.fileno()

    def take(self) -> str:
        """Return an empty folder. Raises OSError, one of AT_CAPACITY if there is no room for it."""
        if self._root.slots is None:
            place = os.statvfs(self._root.path)
            if place.f_bavail * place.f_frsize < self._session_bytes:
                raise OSError(errno.ENOSPC, f"no room for a scratch folder in {self._root.path}")
            path = f"{self._root.path}/{secrets.token_hex(8)}"
            os.mkdir(path, 0o700)
            return path
        if not self._root.slots:
            text = "all scratch folders of this server are in use; close sessions first"
            raise OSError(errno.ENOSPC, text)
        return self._root.slots.popleft()

    def give_back(self, path: str) -> None:
        """Have the janitor empty `path`; its session must have ended."""
        self._dirty.append(path)
        self._next()

    def finished(self) -> str:
        """Read the janitor's message: a folder is clean again, or has too much in it.

        Returns the folder in the second case, else an empty string.
        """
        path = self._janitor.recv(4096).decode()
        if path.startswith(OVER):
            return path.removeprefix(OVER)
        self._busy = False
        if path and self._root.slots is not None:
            self._root.slots.append(path)
        self._next()
        return ""

    def _next(self) -> None:
        if self._dirty and not self._busy:
            self._busy = True
            with contextlib.suppress(OSError):  # the zygote notices the janitor's end by its pid
                self._janitor.send(self._dirty.popleft().encode())


def enter(path: str) -> None:
    """Make `path` the working, home and temporary directory of this process."""
    os.chdir(path)
    os.environ.update(HOME=path, TMPDIR=path)
