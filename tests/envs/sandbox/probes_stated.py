"""What the sandbox is known not to keep from a hostile tool, by level and profile.

A weakness that is not stated here fails the tests, and so does a stated one that has gone.
"""

from envs.config import IsolationLevel, SandboxProfile

_STAT = "`stat` tells whether a path outside exists; its content stays closed"
_DISK = "each file is bounded, their sum is not: sessions share one disk or tmpfs"
_NUMBER = "the number of files is not bounded for one session"

WEAKNESSES: dict[tuple[IsolationLevel, SandboxProfile], dict[str, str]] = {
    ("namespaces", "compute"): {},
    ("landlock", "compute"): {},
    ("seccomp", "compute"): {},
    ("namespaces", "files"): {"full disk": _DISK, "files without number": _NUMBER},
    ("landlock", "files"): {
        "existence by stat": _STAT,
        "full disk": _DISK,
        "files without number": _NUMBER,
    },
    ("namespaces", "files+quota"): {},
}
"""By level and profile: name of the probe, and why it is weak there."""

HARMLESS_ANYWAY = frozenset(
    {
        "leaked descriptors",
        "leaked folders",
        "names",
        "fork bomb",
        "1,500 threads",
        "daemon",
        "program in memory",
        "x32 calls",
    }
)
"""Attacks on the machine that the limits of a process, its user or an offline machine stop, level
`none` included.
"""

NOT_COVERED = (
    "bugs of the kernel: sandboxed code makes system calls to the kernel that the server runs on",
    "timing and cache side channels between sessions, and those of the processor",
    "the sum over sessions of memory and CPU: each session is bounded alone",
    "tools of one session against each other: they share a process on purpose",
    "x86-64's `int 0x80` and x32 gates are tried on x86-64 only; aarch64 has no such gates",
)
