"""Files that name the writer of a run, for filesystems whose flock is missing or ends at a node.

They are numbered and created exclusively: the one with the highest number names the host and the
process that write. Its writer touches it every few seconds. A process that finds that writer gone
creates the next number, so of several only one succeeds.

On the host of the writer, in the same process namespace, the process table says whether it runs.
Elsewhere it counts as gone when its file was not touched for its lease. Both ends of that time are
the file server's, so clocks of nodes do not matter.
"""

import errno
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from envs.errors import StoreError
from rollout.store.regular_files import reading
from rollout.store.run_layout import RunLayout

LEASE_S = 60.0
"""Seconds without a sign of life after which a writer on another host counts as gone."""
_BEATS_PER_LEASE = 6
_PROCESS_TABLE = Path("/proc")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")
_MOUNTS = Path("/proc/self/mountinfo")
_SHARED = (
    "nfs nfs4 lustre ceph cifs smb3 gpfs beegfs glusterfs afs 9p virtiofs orangefs pvfs2 ocfs2 gfs2"
)
"""Types of filesystems that several nodes may see. Some mounts of them keep flock on the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process, as a file names it; `started` tells it from a later one with the same number."""

    host: str
    pid: int
    started: str
    place: str = ""
    """Boot and process namespace of the host; empty in files of older versions."""
    lease_s: float | None = None
    """None where the writer does not touch its file, as in older versions."""

    @property
    def is_here(self) -> bool:
        """Whether the process table of this process would show it."""
        return self.host == socket.gethostname() and self.place in ("", _this_place())

    def text(self) -> str:
        """Return the content of the file."""
        lease = "" if self.lease_s is None else f" {self.place} {self.lease_s:g}"
        return f"{self.host} {self.pid} {self.started}{lease}\n"


NOBODY = Holder(host="nobody", pid=0, started="0")
_UNKNOWN = Holder(host="unknown", pid=0, started="?")


@dataclass(frozen=True, slots=True)
class Seen:
    """The file of a holder at one moment."""

    holder: Holder
    touched_ns: int = 0
    silent_s: float = 0.0
    """Seconds since it was touched, by the clock of the file server."""

    @property
    def runs(self) -> bool:
        """Whether the process runs, as far as this host can know."""
        if self.holder == NOBODY:
            return False
        if self.holder.is_here:
            return _start_of(self.holder.pid) == self.holder.started
        return self.holder.lease_s is None or self.silent_s <= self.holder.lease_s


class HolderLease:
    """The file of this process, which a thread touches until `release`."""

    def __init__(self, layout: RunLayout, number: int, lease_s: float) -> None:
        self._layout, self._number, self._lease_s = layout, number, lease_s
        self.path = layout.lock_holder(number)
        self._touched_at = _now()
        self._lost = ""
        self._over = threading.Event()
        threading.Thread(target=self._keep, name="run-lock", daemon=True).start()

    def check(self) -> None:
        """Raise StoreError where another process has taken the run over, as it may after this one
        could not touch its file for the lease: it was stopped, or cut off.
        """
        if not self._lost and _now() - self._touched_at > self._lease_s / 2:
            self._touch()
        if self._lost:
            raise StoreError(self._lost)

    def release(self) -> None:
        """Let another process write at once. The file stays, so that numbers only grow."""
        self._over.set()
        if not self._lost:
            place(self.path, NOBODY.text(), os.replace)

    def _keep(self) -> None:
        while not self._over.wait(self._lease_s / _BEATS_PER_LEASE) and not self._lost:
            self._touch()

    def _touch(self) -> None:
        try:
            newest = max(self._layout.lock_holders(), default=0)
            if newest == self._number:
                os.utime(self.path)
                self._touched_at = _now()
                return
        except FileNotFoundError:
            newest = 0
        except OSError:  # the server does not answer: the lease goes on
            return
        if not self._over.is_set():
            who = seen(self._layout, newest).holder if newest else _UNKNOWN
            self._lost = (
                f"{self._layout.root} was taken over by process {who.pid} on {who.host}, after "
                f"this one was silent for {self._lease_s:g} s: it writes nothing more"
            )


def take_holder(layout: RunLayout, lease_s: float = LEASE_S) -> HolderLease:
    """Create the file that names this process as the writer. Raises StoreError."""
    me = Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_start_of(os.getpid()),
        place=_this_place() or "?",
        lease_s=lease_s,
    )
    while True:
        number = check_holder(layout) + 1
        mine = layout.lock_holder(number)
        try:
            place(mine, me.text(), os.link)  # fails if it exists
        except FileExistsError:
            continue
        except OSError as error:
            raise StoreError(
                f"{layout.root}: the file system has neither locks (flock) nor hard links "
                f"({error.strerror}), so two writers could not be kept apart: set run.dir to a "
                "folder on another one"
            ) from None
        numbers = layout.lock_holders()
        if numbers[-1:] == [number]:
            for older in numbers[:-1]:
                layout.lock_holder(older).unlink(missing_ok=True)
            return HolderLease(layout, number, lease_s)
        mine.unlink(missing_ok=True)  # others came and went since the check


def check_holder(layout: RunLayout) -> int:
    """Return the number of the last writer, 0 for none, after waiting for the rest of the lease of
    one that has fallen silent. Raises StoreError if it may still run.
    """
    number = max(layout.lock_holders(), default=0)
    first = last = seen(layout, number)
    while last.runs:
        lease_s = last.holder.lease_s
        if last.holder.is_here or lease_s is None or last.touched_ns != first.touched_ns:
            raise StoreError(
                f"{layout.root}: expected no other writer, found process {last.holder.pid} on "
                f"{last.holder.host}: stop it or wait for it. The file system has no locks (flock) "
                f"between nodes, so if that process has ended, remove {layout.lock_holder(number)}"
            )
        time.sleep(min(1.0, lease_s / _BEATS_PER_LEASE))
        number = max(layout.lock_holders(), default=0)
        last = seen(layout, number)
        if last.holder != first.holder:
            first = last
    return number


def seen(layout: RunLayout, number: int) -> Seen:
    """Return what the file with this number says."""
    path = layout.lock_holder(number)
    try:
        with reading(path) as file:  # opening asks the file server for the time
            words, touched_ns = file.read().decode().split(), os.fstat(file.fileno()).st_mtime_ns
        host, pid, started = words[:3]
        known = Holder(host=host, pid=int(pid), started=started)
        if len(words) == 5:
            known = Holder(
                host=host, pid=int(pid), started=started, place=words[3], lease_s=float(words[4])
            )
    except FileNotFoundError:  # a later writer has removed it
        return Seen(NOBODY)
    except OSError as error:
        if error.errno == errno.ESTALE:  # replaced at this moment, by its release
            return Seen(NOBODY)
        raise
    except ValueError:
        return Seen(_UNKNOWN)
    if known.is_here or known.lease_s is None or known == NOBODY:
        return Seen(known, touched_ns)
    return Seen(known, touched_ns, (_server_now_ns(layout.root) - touched_ns) / 1e9)


def on_shared_filesystem(path: Path) -> bool:
    """Whether several nodes may see the folder, by the type of its filesystem."""
    kind = _type_of(path)
    return kind in _SHARED.split() or kind.startswith("fuse.")


def place(path: Path, text: str, put: Callable[[Path, Path], None]) -> None:
    """Write a file and `put` it at `path`: nobody sees it half written."""
    draft = path.with_name(f".{secrets.token_hex(8)}{path.name}")
    draft.write_text(text)
    try:
        put(draft, path)
    except FileExistsError:
        # NFS may repeat a request whose answer was lost: then it was this process's own.
        if draft.stat().st_nlink != 2:
            raise
    finally:
        draft.unlink(missing_ok=True)


def _type_of(path: Path) -> str:
    """Return the type of the filesystem of a folder, such as `nfs4`; empty where it is unknown."""
    found, longest = "", -1
    try:
        mounts, real = _MOUNTS.read_text().splitlines(), path.resolve()
    except OSError:
        return ""
    for line in mounts:
        mount, _, rest = line.partition(" - ")
        words = mount.split()
        point = words[4].encode().decode("unicode_escape") if len(words) > 4 else ""
        if point and real.is_relative_to(point) and len(point) >= longest:
            found, longest = rest.partition(" ")[0], len(point)
    return found


def _server_now_ns(folder: Path) -> int:
    """Return the time of the file server, or of this node where one may not write there."""
    probe = folder / f".now-{secrets.token_hex(8)}"
    try:
        with probe.open("xb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return time.time_ns()
    finally:
        probe.unlink(missing_ok=True)


def _this_place() -> str:
    try:
        return f"{_BOOT_ID.read_text().strip()}/{os.readlink(_NAMESPACE)}"
    except OSError:
        return ""


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _start_of(pid: int) -> str:
    """Return when a process of this host started, in clock ticks since boot; empty if it ended."""
    try:
        stat = (_PROCESS_TABLE / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[19]
