"""The zygote's lock-down: the strongest level that the kernel provides.

The order of the steps matters: each one must still be allowed by the steps before it.
"""

import contextlib
import os
import socket
from dataclasses import dataclass

from envs.errors import IsolationError
from envs.sandbox import confine as sandbox_confine
from envs.sandbox.options import ZygoteOptions
from envs.sandbox.scratch import ScratchRoot
from envs.sandbox.syscalls import ZYGOTE_FILE_RULES, ZYGOTE_RULES

_NICER_BY = 5
"""Added niceness of tools: they get the CPU after their server and its clients."""


@dataclass(frozen=True, slots=True)
class Achieved:
    """How a zygote is locked down; `refusals`: mechanisms not provided, with the reason."""

    level: str
    landlock: int
    refusals: dict[str, str]

    def message(self) -> dict[str, object]:
        return {"level": self.level, "landlock": self.landlock, "refusals": self.refusals}


def lock_down(options: ZygoteOptions, control: socket.socket, root: ScratchRoot) -> Achieved:
    """Confine this process as far as the kernel allows, at most to `options.strongest`.

    At level `namespaces` the function returns in a new process, the first one of a PID namespace;
    the old process only waits for it. Raises IsolationError or OSError.
    """
    quiet = os.open(os.devnull, os.O_RDWR)
    with contextlib.suppress(OSError):
        sandbox_confine.use_short_time_slices(_NICER_BY)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # if memory runs out, the kernel kills tools first
    achieved = _attainable(options, root)
    if achieved.level == "namespaces":
        sandbox_confine.unshare_namespaces()
        _fork_first_process(control)
        sandbox_confine.empty_root(root.file_systems())
        root.moved()
    if achieved.level != "none":
        sandbox_confine.drop_privileges()
    sandbox_confine.die_with_parent()
    root.check(achieved.level, achieved.landlock)
    if achieved.landlock:
        sandbox_confine.restrict_landlock(root.path)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    os.close(quiet)
    if achieved.level != "none":
        rules = ZYGOTE_FILE_RULES if options.files else ZYGOTE_RULES
        machine = sandbox_confine.check_platform()
        sandbox_confine.SyscallFilter(machine, rules).install()
    return achieved


def _attainable(options: ZygoteOptions, root: ScratchRoot) -> Achieved:
    refusals: dict[str, str] = {}
    if options.strongest == "none":
        return Achieved("none", 0, refusals)
    if refusal := sandbox_confine.seccomp_refusal():
        refusals["seccomp"] = refusal
        if options.required != "none":
            raise IsolationError(
                f"expected a kernel that filters system calls, found {refusal}; use Linux 5.10 or "
                "later with CONFIG_SECCOMP_FILTER, or another container runtime that allows it"
            )
        return Achieved("none", 0, refusals)
    level, landlock = "seccomp", 0
    if options.strongest != "seccomp":
        landlock = sandbox_confine.landlock_version()
        if landlock:
            level = "landlock"
        else:
            refusals["landlock"] = "the kernel has no Landlock"
    if options.strongest == "namespaces":
        refusal = sandbox_confine.namespaces_refusal(root.file_systems()[:1])
        if refusal:
            refusals["namespaces"] = refusal
        else:
            level = "namespaces"
    return Achieved(level, landlock, refusals)


def _fork_first_process(control: socket.socket) -> None:
    """Return in the first process of the new PID namespace; the old one waits for it and exits."""
    pid = os.fork()
    if pid == 0:
        return
    control.close()
    sandbox_confine.drop_privileges()
    sandbox_confine.die_with_parent()
    _, status = os.waitpid(pid, 0)
    os._exit(0 if status == 0 else 1)
