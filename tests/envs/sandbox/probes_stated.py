"""Known weaknesses of the sandbox, by level and profile.

The tests fail for a weakness that is not listed here, and for a listed one that no longer exists.
"""

from envs.config import IsolationLevel, SandboxProfile

_STAT = "`stat` tells whether a path outside exists; its content cannot be read"
_GONE = "sessions share one disk; files that are open and have no name are not counted"

WEAKNESSES: dict[tuple[IsolationLevel, SandboxProfile], dict[str, str]] = {
    ("namespaces", "compute"): {},
    ("landlock", "compute"): {},
    ("seccomp", "compute"): {},
    ("namespaces", "files"): {},
    ("landlock", "files"): {
        "existence by stat": _STAT,
        "a file that is gone and full": _GONE,
    },
    ("namespaces", "files+quota"): {},
}
"""Maps level and profile to the weak probes, each with the reason."""

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
"""Attacks on the machine that fail even at level `none`, because of the limits of a process or its
user, or because the machine is offline.
"""

NOT_COVERED = (
    "bugs of the kernel: sandboxed code makes system calls to the kernel that the server runs on",
    "timing and cache side channels between sessions, and those of the processor",
    "the sum over sessions of memory and CPU: each session is limited separately",
    "tools of one session against each other: they share a process on purpose",
    "x86-64's `int 0x80` and x32 ABIs are tested on x86-64 only; aarch64 has no such ABIs",
)
