"""How a session's process may die, and that only want of memory is called a failure of the machine.

An episode that the machine failed has no reward and is run again: a tool that could call its own
death so would have every wrong answer taken back.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import pytest_asyncio

from envs.config import IsolationConfig, IsolationLevel, ToolServerConfig
from envs.errors import SandboxError
from envs.sandbox.compile import CompiledTools, ToolCompiler
from envs.sandbox.oom import OomWatch, kernel_kills
from envs.sandbox.process import Child, ChildGone, Exit, Reply
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.tools import AnswerStatus, ToolSet, ToolSpec

CGROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
WAYS = {
    "an exception": "raise ValueError('no')",
    "sys.exit": "sys.exit(0)",
    "exit code 0": "os._exit(0)",
    "exit code 1": "os._exit(1)",
    "exit code of SIGKILL in a shell": "os._exit(137)",
    "abort": "os.abort()",
    "a null pointer": "ctypes.string_at(0)",
    "a jump to nowhere": "ctypes.CFUNCTYPE(None)(8)()",
    "a write to code": "ctypes.memset(ctypes.cast(libc.getpid, ctypes.c_void_p), 0, 8)",
    "endless recursion": "sys.setrecursionlimit(10**9); down()",
    "SIGKILL to itself": "os.kill(os.getpid(), 9)",
    "SIGKILL to its thread": "signal.raise_signal(signal.SIGKILL)",
    "SIGKILL to all": "os.kill(-1, 9)",
    "SIGTERM to itself": "os.kill(os.getpid(), 15)",
    "an alarm": "signal.alarm(1); time.sleep(2)",
    "a CPU timer": "signal.setitimer(signal.ITIMER_PROF, 0.01); spin()",
    "no CPU left": "resource.setrlimit(resource.RLIMIT_CPU, (0, 0)); spin()",
    "less CPU": "resource.setrlimit(resource.RLIMIT_CPU, (1, 1)); spin()",
    "less CPU at a pointer whose low half is 0": "far_limit(); spin()",
    "no memory": "resource.setrlimit(resource.RLIMIT_AS, (0, 0)); bytearray(10**7)",
    "no stack": "resource.setrlimit(resource.RLIMIT_STACK, (0, 0)); down()",
    "no descriptors": "resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0)); os._exit(3)",
    "no data": "resource.setrlimit(resource.RLIMIT_DATA, (0, 0)); bytearray(10**7)",
    "all memory": "hoard()",
    "all CPU": "spin()",
    "all CPU, SIGXCPU ignored": "signal.signal(signal.SIGXCPU, signal.SIG_IGN); spin()",
    "its socket closed": "os.close(3)",
    "its socket closed, then sleep": "os.close(3); time.sleep(60)",
    "all descriptors closed": "os.closerange(0, 64)",
    "half a reply": "os.write(3, frame(size=9)); os._exit(0)",
    "half a reply, then sleep": "os.write(3, frame(size=9)); time.sleep(60)",
    "half a header": "os.write(3, frame()[:9]); os._exit(0)",
    "a reply over the limit": "os.write(3, b'\\xff' * 64)",
    "two replies": "os.write(3, frame() * 2)",
    "a reply to another call": "os.write(3, frame(number=2)); os._exit(0)",
    "a reply in single bytes": "[os.write(3, bytes([byte])) for byte in frame('x' * 9999)]",
    "a reply that is not text": "os.write(3, frame(b'\\xff')); os._exit(0)",
    "a forged failure of the machine": "os.write(3, frame(status=3)); os._exit(0)",
    "a forged timeout": "os.write(3, frame(status=2)); os._exit(0)",
    "a handler that exits": "signal.signal(2, lambda *_: os._exit(9)); signal.raise_signal(2)",
    "the interpreter ended": "ctypes.pythonapi.Py_FinalizeEx()",
    "an object freed twice": "ctypes.pythonapi.Py_DecRef(ctypes.py_object(tuple()))\nfree_none()",
}
SOURCE = """
import ctypes, json, os, resource, signal, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)

def down(): return down()

def spin():
    while True: pass

def hoard():
    held = []
    while True: held.append(bytearray(2**20))

def free_none():
    for _ in range(2**20): ctypes.pythonapi.Py_DecRef(ctypes.py_object(None))

def frame(text=b"[]", number=1, status=0, size=None):
    size = len(text) if size is None else size
    text = text if isinstance(text, bytes) else text.encode()
    return struct.pack(">IIBBQQ", size, number, status, 0, 0, 0) + text

def far_limit():
    libc.mmap.restype = ctypes.c_void_p
    at = 2**32
    page = libc.mmap(ctypes.c_void_p(at), ctypes.c_size_t(4096), 3, 0x32, -1, ctypes.c_long(0))
    assert page == at, page
    ctypes.memmove(at, struct.pack("QQ", 0, 0), 16)
    number = {"x86_64": 302, "aarch64": 261}[os.uname().machine] if hasattr(os, "uname") else 302
    libc.syscall(ctypes.c_long(number), 0, resource.RLIMIT_CPU, ctypes.c_void_p(at), None)

def pid(): return os.getpid()
"""


def tool_set() -> ToolSet:
    ways = [
        f"def way_{number}():\n" + "".join(f"    {line}\n" for line in code.splitlines())
        for number, code in enumerate(WAYS.values())
    ]
    names = ["pid", "spin", *(f"way_{number}" for number in range(len(WAYS)))]
    return ToolSet(
        tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in names),
        sources=("\n".join([SOURCE, *ways]),) * len(names),
        functions=tuple(names),
    )


TOOLS = tool_set()


class Counter:
    """A counter of the kernel's kills, as `kernel_kills` reads it."""

    def __init__(self) -> None:
        self.kills = 3

    def __call__(self) -> int:
        return self.kills


def new_pool(strongest: IsolationLevel, kills: Counter) -> SandboxPool:
    config = ToolServerConfig(
        isolation=IsolationConfig(required="seccomp"),
        call_timeout_s=10,
        session_cpu_s=1,
        session_memory_mib=256,
    )
    return SandboxPool(config, strongest, oom_kills=kills)


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=get_args(IsolationLevel)[:3])
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[SandboxPool]:
    pool = new_pool(request.param, Counter())
    await pool.start()
    yield pool
    await pool.close()


async def opened(pool: SandboxPool) -> SandboxSession:
    session = SandboxSession(pool, TOOLS, seed=1)
    await session.start()
    return session


@pytest.mark.asyncio(loop_scope="module")
async def test_no_way_to_die_is_a_failure_of_the_machine(pool: SandboxPool) -> None:
    sessions = [await opened(pool) for _ in WAYS]
    answers = await asyncio.gather(
        *(session.call(f"way_{number}", "{}") for number, session in enumerate(sessions))
    )
    found = dict(zip(WAYS, [answer.status for answer in answers], strict=True))
    forged = [way for way, status in found.items() if status is AnswerStatus.INFRA_ERROR]
    assert not forged
    assert found["exit code 0"] is found["a null pointer"] is AnswerStatus.TOOL_ERROR
    assert found["no CPU left"] is AnswerStatus.TOOL_ERROR, "the limit was not refused"
    again = await asyncio.gather(*(session.call("pid", "{}") for session in sessions))
    assert not [answer for answer in again if answer.status is AnswerStatus.INFRA_ERROR]
    for session in sessions:
        session.close()


@pytest.mark.asyncio
async def test_only_a_kill_of_the_kernel_for_want_of_memory_is_one() -> None:
    kills = Counter()
    pool = new_pool("seccomp", kills)
    await pool.start()
    session = await opened(pool)
    number = int((await session.call("pid", "{}")).text)
    running = asyncio.create_task(session.call("spin", "{}"))
    await asyncio.sleep(0)
    os.kill(number, signal.SIGKILL)
    answer = await running
    assert answer.status is AnswerStatus.TOOL_ERROR
    assert "SIGKILL" in answer.text
    number = int((await session.call("pid", "{}")).text)
    running = asyncio.create_task(session.call("spin", "{}"))
    await asyncio.sleep(0)
    kills.kills += 1
    (await opened(pool)).close()  # another session notices the kill first
    os.kill(number, signal.SIGKILL)
    answer = await running
    assert answer.status is AnswerStatus.INFRA_ERROR
    assert "memory ran out" in answer.text
    await pool.close()


@contextmanager
def small_cgroup(pid: int, limit_bytes: int) -> Iterator[None]:
    """Put `pid` into a memory cgroup of its own; skips where that is not allowed."""
    for root, limit in zip(CGROUPS, ("memory.limit_in_bytes", "memory.max"), strict=True):
        folder = root / f"trialrun-test-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / limit).write_text(str(limit_bytes))
            (folder / "cgroup.procs").write_text(str(pid))
        except OSError:
            if folder.exists():
                folder.rmdir()
            continue
        try:
            yield
        finally:
            until = time.monotonic() + 10
            while (folder / "cgroup.procs").read_text().strip() and time.monotonic() < until:
                time.sleep(0.05)
            folder.rmdir()
        return
    pytest.skip("no memory cgroup can be made here")


@pytest.mark.asyncio
async def test_the_kernels_own_kill_is_noticed() -> None:
    if kernel_kills() is None:
        pytest.skip("the kernel does not count what it kills for want of memory")
    config = ToolServerConfig(isolation=IsolationConfig(required="seccomp"), call_timeout_s=20)
    pool = SandboxPool(config, "seccomp")
    await pool.start()
    session = await opened(pool)
    number = int((await session.call("pid", "{}")).text)
    with small_cgroup(number, 64 * 2**20):
        way = list(WAYS).index("all memory")
        answer = await session.call(f"way_{way}", "{}")
        assert answer.status is AnswerStatus.INFRA_ERROR, answer
        assert "memory ran out" in answer.text
        session.close()
    await pool.close()


def test_a_kill_counts_from_when_it_was_noticed() -> None:
    kills = Counter()
    watch = OomWatch(kills)
    kills.kills += 1
    watch.look()
    noticed = time.monotonic()
    assert watch.moved_since(noticed - 60)
    assert not watch.moved_since(noticed + 1e-3)
    kills.kills += 1
    assert watch.moved_since(noticed)


@pytest.mark.asyncio
async def test_cpu_seconds_are_those_of_all_processes_of_a_session() -> None:
    pool = new_pool("seccomp", Counter())
    await pool.start()
    session = await opened(pool)
    statuses = [(await session.call("spin", "{}")).status for _ in range(2)]
    assert statuses == [AnswerStatus.TIMEOUT] * 2
    assert "CPU seconds" in (await session.call("pid", "{}")).text
    await pool.close()


class Gone:
    """A child that has ended; its zygote has not reported how, because it is slow or is dead."""

    stopped = False
    cpu_seen_s = 0.0

    def __init__(self, *, orphaned: bool) -> None:
        self.orphaned = orphaned

    def send(self, body: bytes) -> None: ...

    async def request(self, body: bytes, number: int, limit_bytes: int = 0) -> Reply:
        raise ChildGone

    async def ended(self, wait_s: float = 0.0) -> Exit | None:
        return None

    def cpu_s(self) -> float | None:
        return None

    def kill(self) -> None: ...


class Outfit:
    """Stands for a pool whose children are `Gone`."""

    config = ToolServerConfig()
    oom = OomWatch(Counter())

    def __init__(self, *, orphaned: bool) -> None:
        self._child: Any = Gone(orphaned=orphaned)

    async def acquire(self) -> Child:
        return self._child

    async def ready(self, tool_set: ToolSet) -> tuple[CompiledTools, Child]:
        return CompiledTools.of((), [], {}), self._child


@pytest.mark.asyncio
async def test_a_death_that_is_not_reported_is_the_machines_only_if_the_zygote_died() -> None:
    statuses = []
    for orphaned in (False, True):
        pool: Any = Outfit(orphaned=orphaned)
        statuses.append((await (await opened(pool)).call("pid", "{}")).status)
    assert statuses == [AnswerStatus.TOOL_ERROR, AnswerStatus.INFRA_ERROR]
    compiled = await ToolCompiler(Outfit(orphaned=False).acquire, 5, 20).compiled(TOOLS)
    assert "without a report" in compiled.errors[0]
    with pytest.raises(SandboxError, match="ended while it compiled"):
        await ToolCompiler(Outfit(orphaned=True).acquire, 5, 20).compiled(TOOLS)
