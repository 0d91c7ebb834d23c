"""Allow-lists of system calls for sandboxed processes; all other calls are refused.

The numbers are from the kernel's `asm/unistd_64.h` and `asm-generic/unistd.h`. None means that an
architecture does not have the call.
"""

from dataclasses import dataclass

CLONE_NEW_FLAGS = 0x7E02_0080
"""Every flag of `clone` that creates a namespace."""
PROT_EXEC = 0x4
OTHERS_CLOCKS = 0xFFFF_FFF0
"""Bits of clock ids that are zero for the system-wide clocks, and set for those of a process or a
device.
"""
FCNTL_FLAGS = (1, 2, 3)
"""`fcntl` commands that read and set the flags of a descriptor."""
FCNTL_OWN_FILES = (5, 6, 1030)
"""`fcntl` commands for locks and copies of a descriptor."""
INHERITED = 3
"""Highest descriptor that a child does not open itself. 0 to 2 are the machine's /dev/null: locks
on it would reach every other session, and slow down every process that closes it.
"""

AUDIT_ARCHES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
SECCOMP_NUMBERS = {"x86_64": 317, "aarch64": 277}
PIVOT_ROOT_NUMBERS = {"x86_64": 155, "aarch64": 41}


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What must hold for one argument of a call, of which the low 32 bits are looked at.

    All `clear_bits` are zero, the argument is one of `values` if there are any, and it is above
    `above`. With `null` all 64 bits are zero, as in a null pointer.
    """

    argument: int
    clear_bits: int = 0
    values: tuple[int, ...] = ()
    above: int | None = None
    null: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One allowed call; with `ways`, all conditions of at least one of them must hold."""

    x86_64: int | None
    aarch64: int | None
    ways: tuple[tuple[Condition, ...], ...] = ()

    def number(self, machine: str) -> int | None:
        """Return the call's number on `machine`, a key of AUDIT_ARCHES."""
        return self.x86_64 if machine == "x86_64" else self.aarch64


def _clear(argument: int, bits: int) -> tuple[tuple[Condition, ...], ...]:
    """One way, in which an argument has none of `bits`."""
    return ((Condition(argument=argument, clear_bits=bits),),)


_LIMITS_READ = ((Condition(argument=0, clear_bits=0xFFFF_FFFF), Condition(argument=2, null=True)),)
"""`prlimit64` of the process itself, without new limits: a process that lowers its CPU limit is
killed by the kernel, which must not look like a failure of the machine.
"""
_FCNTL = (
    (Condition(argument=1, values=FCNTL_FLAGS),),
    (Condition(argument=1, values=FCNTL_OWN_FILES), Condition(argument=0, above=INHERITED)),
)

LEAF_RULES = {
    "read": Rule(0, 63),
    "write": Rule(1, 64),
    "readv": Rule(19, 65),
    "writev": Rule(20, 66),
    "close": Rule(3, 57),
    "lseek": Rule(8, 62),
    "mmap": Rule(9, 222, _clear(2, PROT_EXEC)),
    "mprotect": Rule(10, 226, _clear(2, PROT_EXEC)),
    "munmap": Rule(11, 215),
    "mremap": Rule(25, 216),
    "madvise": Rule(28, 233),
    "brk": Rule(12, 214),
    "rt_sigaction": Rule(13, 134),
    "rt_sigprocmask": Rule(14, 135),
    "rt_sigreturn": Rule(15, 139),
    "sigaltstack": Rule(131, 132),
    "futex": Rule(202, 98),
    "getpid": Rule(39, 172),
    "gettid": Rule(186, 178),
    "getuid": Rule(102, 174),
    "geteuid": Rule(107, 175),
    "getgid": Rule(104, 176),
    "getegid": Rule(108, 177),
    "getrandom": Rule(318, 278),
    "clock_gettime": Rule(228, 113, _clear(0, OTHERS_CLOCKS)),
    "clock_getres": Rule(229, 114, _clear(0, OTHERS_CLOCKS)),
    "clock_nanosleep": Rule(230, 115, _clear(0, OTHERS_CLOCKS)),
    "nanosleep": Rule(35, 101),
    "gettimeofday": Rule(96, 169),
    "time": Rule(201, None),
    "times": Rule(100, 153),
    "getrusage": Rule(98, 165),
    "poll": Rule(7, None),
    "ppoll": Rule(271, 73),
    "select": Rule(23, None),
    "pselect6": Rule(270, 72),
    "prlimit64": Rule(302, 261, _LIMITS_READ),
    "sched_yield": Rule(24, 124),
    "restart_syscall": Rule(219, 128),
    "exit": Rule(60, 93),
    "exit_group": Rule(231, 94),
}
"""Calls of a session child: compute, sleep, and read and write descriptors that it already has.

There are no calls with paths, sockets, processes, threads or signals to others, and no new
executable memory.
"""

FILE_RULES = {
    "openat": Rule(257, 56),
    "open": Rule(2, None),
    "fstat": Rule(5, 80),
    "newfstatat": Rule(262, 79),
    "statx": Rule(332, 291),
    "stat": Rule(4, None),
    "lstat": Rule(6, None),
    "access": Rule(21, None),
    "faccessat": Rule(269, 48),
    "faccessat2": Rule(439, 439),
    "getcwd": Rule(79, 17),
    "getdents64": Rule(217, 61),
    "unlink": Rule(87, None),
    "unlinkat": Rule(263, 35),
    "mkdir": Rule(83, None),
    "mkdirat": Rule(258, 34),
    "rmdir": Rule(84, None),
    "rename": Rule(82, None),
    "renameat": Rule(264, 38),
    "renameat2": Rule(316, 276, _clear(4, 0xFFFF_FFFE)),
    "ftruncate": Rule(77, 46),
    "pread64": Rule(17, 67),
    "pwrite64": Rule(18, 68),
    "fsync": Rule(74, 82),
    "fdatasync": Rule(75, 83),
    "fcntl": Rule(72, 25, _FCNTL),
}
"""Additional calls of a session child with a scratch folder; Landlock restricts them to that
folder.

There are no calls for links, modes, owners, times, attributes, devices or `chdir`, because Landlock
does not restrict those.
"""

ZYGOTE_RULES = LEAF_RULES | {
    "mmap": Rule(9, 222),
    "mprotect": Rule(10, 226),
    "clone": Rule(56, 220, _clear(0, CLONE_NEW_FLAGS)),
    "fork": Rule(57, None),
    "wait4": Rule(61, 260),
    "pidfd_open": Rule(434, 434),
    "kill": Rule(62, 129),
    "socketpair": Rule(53, 199),
    "sendmsg": Rule(46, 211),
    "recvmsg": Rule(47, 212),
    "sendto": Rule(44, 206),
    "recvfrom": Rule(45, 207),
    "fcntl": Rule(72, 25),
    "ioctl": Rule(16, 29),
    "close_range": Rule(436, 436),
    "prlimit64": Rule(302, 261, _clear(0, 0xFFFF_FFFF)),
    "dup2": Rule(33, None),
    "dup3": Rule(292, 24),
    "prctl": Rule(157, 167),
    "seccomp": Rule(317, 277),
    "set_robust_list": Rule(273, 99),
    "rseq": Rule(334, 293),
    "set_tid_address": Rule(218, 96),
}
"""Calls of the zygote, which forks children, hands out their sockets and reaps them."""

ZYGOTE_FILE_RULES = (
    FILE_RULES
    | ZYGOTE_RULES
    | {
        "chdir": Rule(80, 49),
        "statfs": Rule(137, 43),
        "chmod": Rule(90, None),
        "fchmodat": Rule(268, 53),
        "landlock_create_ruleset": Rule(444, 444),
        "landlock_add_rule": Rule(445, 445),
        "landlock_restrict_self": Rule(446, 446),
    }
)
"""Calls of a zygote that also creates scratch folders for its children and removes them."""
