"""Lock-down of the calling process: namespaces, privileges, Landlock and seccomp.

Uses only the standard library, because it runs where nothing else is installed. A step that fails
raises OSError with the name of the system call. Sources: landlock(7), seccomp(2),
user_namespaces(7), capabilities(7).
"""

import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from envs.errors import IsolationError
from envs.sandbox.syscalls import (
    AUDIT_ARCHES,
    PIVOT_ROOT_NUMBERS,
    SECCOMP_NUMBERS,
    Condition,
    Rule,
)

NOBODY = 65_534
ONLY_DESCRIPTOR = 3
HIGHEST_DESCRIPTOR = 1_024
_CLOSE_RANGE = 436
_NAMESPACES = {
    "mount": 0x0002_0000,
    "uts": 0x0400_0000,
    "ipc": 0x0800_0000,
    "pid": 0x2000_0000,
    "net": 0x4000_0000,
}
_NEW_USER = 0x1000_0000
_MS_REC_PRIVATE = 0x4000 | 0x4_0000
_MS_READ_ONLY, _MS_REMOUNT = 0x1, 0x20
_MS_PLAIN = 0x2 | 0x4 | 0x8  # no setuid, no devices, no exec
_MNT_DETACH = 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT, _LANDLOCK_VERSION = 444, 445, 446, 1
_LANDLOCK_PATH_BENEATH = 1
_SCRATCH_ACCESS = 0b0110_0001_1011_1110
"""Landlock rights in the scratch folder: read, write, truncate, list, create, remove and move files
and folders.
"""
_PR_PDEATHSIG, _PR_DUMPABLE, _PR_CAPBSET_DROP, _PR_NO_NEW_PRIVS = 1, 4, 24, 38
_CAPABILITY_VERSION_3 = 0x2008_0522
_RET_ALLOW, _RET_KILL, _RET_EPERM = 0x7FFF_0000, 0x8000_0000, 0x0005_0001
_SECCOMP_FILTER, _SECCOMP_AVAILABLE = 1, 2
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
_SLICE_NS = 100_000
_SIGACTION = struct.Struct("P128sixxxxP")
_SA_NOCLDSTOP = 1
_X32_BIT = 0x4000_0000


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A file system in memory: its folder in the new root, and its limits."""

    name: str
    size_mib: int
    inodes: int


_libc = ctypes.CDLL(None, use_errno=True)


def check_platform() -> str:
    """Return the machine's architecture. Raises IsolationError if the sandbox cannot work on it."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in AUDIT_ARCHES:
        raise IsolationError(
            f"expected Linux on {' or '.join(AUDIT_ARCHES)}, found {sys.platform} on {machine}; "
            "run the tool server in a Linux container (on macOS: Docker Desktop, colima or lima) "
            "or on another machine"
        )
    return machine


def check_kernel() -> None:
    """Raise IsolationError if the kernel has no pidfds, which name a process without a race."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError) as error:
        raise IsolationError(
            f"expected Linux 5.4 or later with pidfd_open, found {platform.release()} ({error}); "
            "boot a newer kernel (best 6.2 or later, with Landlock), use a virtual machine with "
            "one, or use a container runtime that allows this call"
        ) from error


def _checked(name: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _syscall(name: str, number: int, *arguments: int | bytes | None) -> int:
    values = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    return _checked(name, _libc.syscall(ctypes.c_long(number), *values))


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _checked(f"prctl({option})", _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def use_short_time_slices(nicer_by: int = 0) -> None:
    """Give this process, and those it forks, time slices of 0.1 ms while others want the core.

    So a tool that computes without end delays other sessions for hardly longer than that.
    `nicer_by` is added to the niceness of the process, up to 19. Kernels before 6.12 apply the
    niceness but not the time slice. Source: sched_setattr(2), sched_runtime.
    """
    number = _SCHED_SETATTR.get(platform.machine()) if sys.platform == "linux" else None
    niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + nicer_by)
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, 0, 0, niceness, 0, _SLICE_NS, 0, 0)
    if number:
        _syscall("sched_setattr", number, 0, attributes, 0)


def ignore_stopped_children() -> None:
    """Let children that stop or continue raise no SIGCHLD; its handler must be installed already.

    Python's `signal` module cannot set this flag. Source: sigaction(2), SA_NOCLDSTOP; the struct of
    glibc and musl is handler, mask of 1,024 bits, flags, restorer.
    """
    action = ctypes.create_string_buffer(_SIGACTION.size)
    _checked("sigaction", _libc.sigaction(signal.SIGCHLD, None, action))
    handler, mask, flags, restorer = _SIGACTION.unpack(action.raw)
    action.raw = _SIGACTION.pack(handler, mask, flags | _SA_NOCLDSTOP, restorer)
    _checked("sigaction", _libc.sigaction(signal.SIGCHLD, action, None))


def unshare_namespaces() -> None:
    """Enter new mount, UTS, IPC, network and (from the next fork on) PID namespaces.

    Root first tries without a user namespace, so that its uid can be dropped for real.
    """
    flags = sum(_NAMESPACES.values())
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and _libc.unshare(flags) == 0:
        return
    _checked("unshare", _libc.unshare(flags | _NEW_USER))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def empty_root(folders: Sequence[Tmpfs] = ()) -> None:
    """Replace the file system by an empty read-only tmpfs, with a tmpfs on each of `folders`.

    The process must be in a new mount namespace.
    """
    private = ctypes.c_ulong(_MS_REC_PRIVATE)
    _checked("mount private", _libc.mount(b"none", b"/", None, private, None))
    flags = _MS_PLAIN if folders else _MS_PLAIN | _MS_READ_ONLY
    _mount_tmpfs(b"/tmp", flags, f"size=4k,nr_inodes={len(folders) + 1},mode=555")
    os.chdir("/tmp")
    for folder in folders:
        os.mkdir(folder.name, 0o700)
        _mount_tmpfs(
            folder.name.encode(),
            _MS_PLAIN,
            f"size={folder.size_mib}m,nr_inodes={folder.inodes},mode=700,uid={NOBODY},gid={NOBODY}",
        )
    _syscall("pivot_root", PIVOT_ROOT_NUMBERS[check_platform()], b".", b".")
    _checked("umount2", _libc.umount2(b".", _MNT_DETACH))
    os.chdir("/")
    if folders:
        read_only = ctypes.c_ulong(_MS_REMOUNT | _MS_PLAIN | _MS_READ_ONLY)
        _checked("remount", _libc.mount(b"none", b"/", None, read_only, None))


def _mount_tmpfs(target: bytes, flags: int, options: str) -> None:
    mounted = _libc.mount(b"none", target, b"tmpfs", ctypes.c_ulong(flags), options.encode())
    _checked("mount tmpfs", mounted)


def namespaces_refusal(folders: Sequence[Tmpfs] = ()) -> str:
    """Return why namespaces are not available, or an empty string; tries it in a child process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            unshare_namespaces()
            empty_root(folders)
        except OSError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        refusal = file.read().decode()
    os.waitpid(pid, 0)
    return refusal


def drop_privileges() -> None:
    """Give up uid 0 and every capability for good; no program executed later regains them."""
    for capability in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except PermissionError as error:
            raise IsolationError(
                f"expected that root can become uid {NOBODY}, found {error}; start the tool "
                "server as another user, or with the capabilities SETUID and SETGID"
            ) from error
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _checked("capset", _libc.capset(header, bytes(24)))
    _prctl(_PR_NO_NEW_PRIVS, 1)
    _prctl(_PR_DUMPABLE, 0)


def close_all_but(descriptor: int) -> None:
    """Move `descriptor` to ONLY_DESCRIPTOR; close all others except the three standard streams."""
    os.dup2(descriptor, ONLY_DESCRIPTOR, inheritable=False)
    first = ctypes.c_long(ONLY_DESCRIPTOR + 1)
    # not os.closerange: Python builds for an old C library close a thousand numbers one by one
    closed = _libc.syscall(ctypes.c_long(_CLOSE_RANGE), first, ctypes.c_long(2**31 - 1), 0)
    if closed < 0:  # before Linux 5.9
        os.closerange(ONLY_DESCRIPTOR + 1, HIGHEST_DESCRIPTOR)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies. A later change of uid undoes this."""
    _prctl(_PR_PDEATHSIG, signal.SIGKILL)


def landlock_version() -> int:
    """Return the kernel's Landlock ABI version, 0 if it has no Landlock."""
    null = ctypes.c_char_p(None)
    number = ctypes.c_long(_LANDLOCK_CREATE)
    version = _libc.syscall(number, null, ctypes.c_long(0), ctypes.c_long(_LANDLOCK_VERSION))
    return max(0, version)


def restrict_landlock(scratch: str = "") -> None:
    """Deny every access that this kernel's Landlock knows.

    That is files, TCP, abstract UNIX sockets, and signals to other domains. Plain files and folders
    beneath `scratch` stay accessible.
    """
    version = landlock_version()
    file_bits = (1 << 13) - 1
    for since, bit in ((2, 13), (3, 14), (5, 15)):
        file_bits |= (version >= since) << bit
    net_bits = 0b11 if version >= 4 else 0
    scope_bits = 0b11 if version >= 6 else 0
    fields = [file_bits] + [net_bits] * (version >= 4) + [scope_bits] * (version >= 6)
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    name = "landlock_create_ruleset"
    ruleset = _syscall(name, _LANDLOCK_CREATE, attributes, len(attributes), 0)
    if scratch:
        folder = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        rule = struct.pack("=Qi", file_bits & _SCRATCH_ACCESS, folder)
        _syscall("landlock_add_rule", _LANDLOCK_ADD, ruleset, _LANDLOCK_PATH_BENEATH, rule, 0)
        os.close(folder)
    _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _GIVE = 0x20, 0x15, 0x35, 0x45, 0x06
"""Instructions of a seccomp program (linux/bpf_common.h)."""


def _instruction(code: int, true: int, false: int, value: int) -> bytes:
    return struct.pack("HBBI", code, true, false, value)


def filter_program(machine: str, rules: dict[str, Rule]) -> bytes:
    """Return a seccomp program that allows calls by `rules`; other calls fail with EPERM.

    A system call through another ABI (i386's `int 0x80`, x32) kills the process, because the same
    numbers mean other calls there.
    """
    program = [
        _instruction(_LOAD, 0, 0, 4),
        _instruction(_EQUAL, 1, 0, AUDIT_ARCHES[machine]),
        _instruction(_GIVE, 0, 0, _RET_KILL),
        _instruction(_LOAD, 0, 0, 0),
        _instruction(_AT_LEAST, 0, 1, _X32_BIT),
        _instruction(_GIVE, 0, 0, _RET_KILL),
    ]
    for rule in rules.values():
        number = rule.number(machine)
        if number is None:
            continue
        ways = b"".join(_way(conditions) for conditions in rule.ways)
        ways += _instruction(_GIVE, 0, 0, _RET_EPERM if rule.ways else _RET_ALLOW)
        program += [_instruction(_EQUAL, 0, len(ways) // 8, number), ways]
    return b"".join([*program, _instruction(_GIVE, 0, 0, _RET_EPERM)])


def _way(conditions: tuple[Condition, ...]) -> bytes:
    """Return instructions that allow a call if all `conditions` hold, else go on behind them."""
    steps = [step for condition in conditions for step in _steps(condition)]
    left = range(len(steps), 0, -1)  # to the instruction behind the one that allows
    return b"".join(
        [
            *(
                _instruction(
                    code,
                    left_here if true is None else true,
                    left_here if false is None else false,
                    value,
                )
                for left_here, (code, true, false, value) in zip(left, steps, strict=True)
            ),
            _instruction(_GIVE, 0, 0, _RET_ALLOW),
        ]
    )


def _steps(condition: Condition) -> Iterator[tuple[int, int | None, int | None, int]]:
    """Yield code, jumps if true and if false, and value; a jump of None: the condition fails."""
    low = 16 + 8 * condition.argument
    yield _LOAD, 0, 0, low
    if condition.clear_bits:
        yield _ANY_BIT, None, 0, condition.clear_bits
    if condition.above is not None:
        yield _AT_LEAST, 0, None, condition.above + 1
    for left, value in zip(range(len(condition.values), 0, -1), condition.values, strict=True):
        yield _EQUAL, left - 1, 0 if left > 1 else None, value
    if condition.null:
        for half in (low, low + 4):
            yield _LOAD, 0, 0, half
            yield _EQUAL, 0, None, 0


class SyscallFilter:
    """A seccomp program, built in advance for processes that can do little when they install it."""

    def __init__(self, machine: str, rules: dict[str, Rule]) -> None:
        program = filter_program(machine, rules)
        self._program = ctypes.create_string_buffer(program, len(program))
        header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(self._program))
        self._arguments = (
            ctypes.c_long(SECCOMP_NUMBERS[machine]),
            ctypes.c_long(_SECCOMP_FILTER),
            ctypes.c_long(0),
            ctypes.c_char_p(header),
        )

    def install(self) -> None:
        """Apply the filter for good, to children too; a later filter can only restrict more."""
        _checked("seccomp", _libc.syscall(*self._arguments))


def seccomp_refusal() -> str:
    """Return why this kernel cannot filter system calls, or an empty string."""
    number, action = SECCOMP_NUMBERS[check_platform()], struct.pack("I", _RET_EPERM & ~0xFFFF)
    try:
        _syscall("seccomp", number, _SECCOMP_AVAILABLE, 0, action)
    except OSError as error:
        return str(error)
    return ""
