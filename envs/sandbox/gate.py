"""The start-up self-test (gate): quick hostile probes in a real child, before the first session.

It detects a filter or a kernel that does not do what the level promises. The long suite of probes
is part of the tests; this one takes a few milliseconds at every start of a zygote. A probe that
succeeds does no harm: calls that would change something get null pointers. The child answers in
plain lines: how many probes it tried, then those that were not refused.
"""

import asyncio
import json
import marshal
import os

from envs.errors import IsolationError, SandboxError
from envs.sandbox.compile import CompiledTools
from envs.sandbox.isolation import IsolationReport
from envs.sandbox.process import Child, ChildGone, ChildProtocolError

_TIMEOUT_S = 10.0
_MIB = 2**20

_SOURCE = """
import ctypes, os, resource, socket, threading

# attaches to pid 0, which is no process: PTRACE_TRACEME would stop this one at its next signal
PTRACE_ATTACH = 16
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result

def forked():
    if os.fork() == 0:
        os._exit(0)

def written(path):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL))
    os.unlink(path)

def executable():
    mmap = libc.mmap
    mmap.restype = ctypes.c_void_p
    if mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, ctypes.c_long(0)) == 2**64 - 1:
        raise OSError(ctypes.get_errno(), "mmap")

PROBES = {
    "read a file": lambda server, memory: open("/etc/passwd").read(),
    "read the server's environment": lambda server, memory: open(f"/proc/{server}/environ").read(),
    "write a file": lambda server, memory: written(f"/tmp/trialrun-gate-{server}"),
    "list another folder": lambda server, memory: os.listdir(".."),
    "chmod": lambda server, memory: call("chmod", None, 0),
    "symlink": lambda server, memory: call("symlink", None, None),
    "socket": lambda server, memory: socket.socket(),
    "UNIX socket": lambda server, memory: socket.socket(socket.AF_UNIX),
    "fork": lambda server, memory: forked(),
    "thread": lambda server, memory: threading.Thread(target=print).start(),
    "exec": lambda server, memory: call("execve", None, None, None),
    "kill": lambda server, memory: os.kill(server, 0),
    "ptrace": lambda server, memory: call("ptrace", PTRACE_ATTACH, 0, None, None),
    "mount": lambda server, memory: call("mount", None, None, None, 0, None),
    "unshare": lambda server, memory: call("unshare", 0),
    "memory file": lambda server, memory: os.memfd_create("x"),
    "executable memory": lambda server, memory: executable(),
    "memory over the limit": lambda server, memory: bytearray(memory),
    "a lower limit": lambda server, memory: resource.setrlimit(resource.RLIMIT_CPU, (60, 60)),
    "a higher limit": lambda server, memory: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)),
}
REFUSALS = (PermissionError, FileNotFoundError, MemoryError, ValueError)

def gate(server, memory, scratch):
    outcomes = {}
    for name, probe in PROBES.items():
        try:
            probe(server, memory)
            outcomes[name] = "got through"
        except REFUSALS:
            outcomes[name] = ""
        except Exception as error:
            refused = isinstance(error, RuntimeError) and "new thread" in str(error)
            outcomes[name] = "" if refused else repr(error)
    outcomes["scratch"] = ""
    if scratch:
        try:
            written("gate")
        except OSError as error:
            outcomes["scratch"] = repr(error)
    passed = [f"{name} ({outcome})" for name, outcome in outcomes.items() if outcome]
    return "\\n".join([str(len(outcomes)), *passed])
"""
_TRIED = str(_SOURCE.count(": lambda server, memory: ") + 1)
"""First line of the answer: the probes, and the scratch."""


def _probing_tools() -> CompiledTools:
    code = marshal.dumps(compile(_SOURCE, "<gate>", "exec", dont_inherit=True))
    return CompiledTools.of(((0, "gate"),), [code], {})


async def check_gate(child: Child, report: IsolationReport) -> None:
    """Run the probes in the fresh `child`, which must not be used afterwards.

    Raises IsolationError with the probes that succeeded, or SandboxError if the child failed.
    """
    arguments = {
        "server": os.getpid(),
        "memory": report.limits.memory_mib * _MIB,
        "scratch": report.profile != "compute",
    }
    request = {"number": 1, "tool": 0, "arguments": json.dumps(arguments)}
    child.send(_probing_tools().start(0))
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reply = await child.request(json.dumps(request).encode(), 1)
    except (ChildGone, ChildProtocolError, TimeoutError) as error:
        raise SandboxError(
            f"the sandbox's self-test did not finish: {error!r}; start the server again"
        ) from error
    tried, *passed = reply.text.decode("utf-8", "replace").split("\n")
    if reply.failed or tried != _TRIED:
        passed = [f"the probes themselves ({tried})"]
    if passed:
        raise IsolationError(
            f"expected every probe to be refused at level {report.level}, found: "
            f"{', '.join(passed)}; do not run tools here: use another kernel or container, and "
            "report this with the output of `trialrun doctor`"
        )
