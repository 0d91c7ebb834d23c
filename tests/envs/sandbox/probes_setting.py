"""The settings that hostile tools are tried in: who starts the server, and what its kernel gives.

A setting is entered by the calling process, for good: users, capabilities and filters only narrow.
"""

import ctypes
import os
import struct
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from envs.config import IsolationLevel
from envs.sandbox.syscalls import AUDIT_ARCHES, CLONE_NEW_FLAGS

NOBODY = 65_534
_DOCKER_CAPABILITIES = 0xA804_25FB
_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _CAPABILITY_VERSION_3 = 22, 24, 0x2008_0522
_NEW_MOUNTS, _BIND, _PRIVATE = 0x2_0000, 0x1000 | 0x4000, 0x4000 | 0x4_0000
_ALLOW, _EPERM, _ENOSYS = 0x7FFF_0000, 0x0005_0001, 0x0005_0026
_CLONE, _CLONE3 = 56, 435
_DOCKER_DENIES = (
    *(101, 153, 154, 155, 159, 161, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173),
    *(174, 175, 176, 177, 178, 179, 180, 212, 227, 246, 248, 249, 250, 237, 238, 239, 256, 279),
    *(272, 298, 303, 304, 305, 308, 310, 311, 312, 313, 320, 321, 323, 425, 426, 427, 428, 429),
    *(430, 431, 432, 433, 438, 442, 443, 447),
)
"""x86-64 numbers of what Docker's default profile refuses: ptrace, vhangup, modify_ldt, pivot_root,
adjtimex, chroot, acct, settimeofday, mount to iopl, modules, quotactl, clock_settime, kexec, keys,
NUMA policy, unshare, perf, file handles, clock_adjtime, setns, process_vm, kcmp, bpf, userfaultfd,
io_uring, the new mount calls, pidfd_getfd, quotactl_fd, memfd_secret.
"""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a server runs. `level` is what it should achieve there with profile `compute`."""

    name: str
    level: IsolationLevel
    nobody: bool = False
    docker: bool = False
    strongest: IsolationLevel = "namespaces"

    @property
    def refusal(self) -> str:
        """Why this process cannot enter the setting; empty if it can."""
        if (self.docker or not self.nobody) and os.geteuid() != 0:
            return "needs root"
        if self.docker and os.uname().machine != "x86_64":
            return "its filter is written for x86-64"
        return ""


SETTINGS = (
    Setting("root", "namespaces"),
    Setting("user", "namespaces", nobody=True),
    Setting("container root", "landlock", docker=True),
    Setting("container user", "landlock", nobody=True, docker=True),
    Setting("only landlock", "landlock", strongest="landlock"),
    Setting("only seccomp", "seccomp", strongest="seccomp"),
    Setting("none", "none", nobody=True, strongest="none"),
)
"""`container`: Docker's default capabilities and system calls, so no user namespaces. `none` shows
what the probes do where nothing holds them.
"""


def enter(setting: Setting) -> None:
    """Confine this process to `setting`; whatever it executes later stays there."""
    if setting.nobody and os.geteuid() == 0:
        _open_the_way(Path(sys.base_prefix))
    if setting.docker:
        _install(_docker_filter())
        for capability in range(64):
            if not _DOCKER_CAPABILITIES >> capability & 1:
                _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
        header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
        granted = _DOCKER_CAPABILITIES
        if _libc.capset(header, struct.pack("6I", granted, granted, 0, 0, 0, 0)):
            raise OSError(ctypes.get_errno(), "capset")
    if setting.nobody and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _open_the_way(target: Path) -> None:
    """Make `target` reachable for other users, in a mount namespace of this process's own."""
    closed = [path for path in reversed(target.parents) if not path.stat().st_mode & 0o001]
    if not closed:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, result in (
            ("unshare", _libc.unshare(_NEW_MOUNTS)),
            ("private", _mount(b"none", "/", None, _PRIVATE)),
            ("bind", _mount(bytes(target), folder, None, _BIND)),
            ("tmpfs", _mount(b"none", str(closed[0]), b"tmpfs", 0)),
        ):
            if result:
                raise OSError(ctypes.get_errno(), name)
        closed[0].chmod(0o755)
        target.mkdir(parents=True)
        if _mount(folder.encode(), str(target), None, _BIND) or _libc.umount2(folder.encode(), 2):
            raise OSError(ctypes.get_errno(), "bind")


def _mount(source: bytes, target: str, kind: bytes | None, flags: int) -> int:
    return _libc.mount(source, target.encode(), kind, ctypes.c_ulong(flags), None)


def _install(program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    if _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.c_char_p(header), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def _docker_filter() -> bytes:
    """Return a seccomp program that refuses as Docker's does and allows everything else."""
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, AUDIT_ARCHES["x86_64"]), (give, 0, 0, _EPERM)]
    program.append((load, 0, 0, 0))
    for number in _DOCKER_DENIES:
        program += [(equal, 0, 1, number), (give, 0, 0, _EPERM)]
    program += [(equal, 0, 1, _CLONE3), (give, 0, 0, _ENOSYS)]
    program += [(equal, 0, 3, _CLONE), (load, 0, 0, 16), (any_bit, 0, 1, CLONE_NEW_FLAGS)]
    program += [(give, 0, 0, _EPERM), (give, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)
