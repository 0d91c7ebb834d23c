"""A tool that has answered and goes on computing is stopped until its next call."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from envs.config import IsolationConfig, IsolationLevel, ToolServerConfig
from envs.sandbox.rest import RestTiming, RestWatch
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.tools import AnswerStatus, ToolSet, ToolSpec

SOURCE = """
import os, struct, threading, time
def spin():
    while True: pass
def answer_at_once(number=1):
    os.write(3, struct.pack(">IIBBQQ", 2, number, 0, 0, 0, 0) + b"[]")
def computes(number=1):
    answer_at_once(number)
    spin()
def sleeps_first():
    answer_at_once()
    time.sleep(0.5)
    spin()
def thread():
    threading.Thread(target=spin, daemon=True).start()
def grandchild():
    if os.fork() == 0:
        spin()
def pid():
    return os.getpid()
"""
NAMES = ("computes", "sleeps_first", "thread", "grandchild", "pid")
TOOLS = ToolSet(
    tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in NAMES),
    sources=(SOURCE,) * len(NAMES),
    functions=NAMES,
)
_SETTLE_S = 20.0


class Process:
    """A process with a clock that the test moves."""

    def __init__(self) -> None:
        self.clock_s = 1.0
        self.looks = self.pauses = 0
        self.gone = False

    def cpu_s(self) -> float | None:
        self.looks += 1
        return None if self.gone else self.clock_s

    def pause(self) -> None:
        self.pauses += 1

    def resume(self) -> None: ...


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(_SETTLE_S):
        while not what():
            await asyncio.sleep(0.002)


QUICK = RestTiming(looks_s=(0.01, 0.02, 0.03, 0.05))


async def test_a_process_that_computes_is_stopped_at_the_second_look() -> None:
    watch, process = RestWatch(QUICK), Process()
    watch.call_ended(process)
    await until(lambda: process.looks == 1)
    process.clock_s += 0.01
    await until(lambda: process.pauses == 1)
    assert (process.looks, watch.stopped) == (2, 1)


async def test_a_still_process_is_stopped_at_the_last_look_and_blamed_for_nothing() -> None:
    watch, process = RestWatch(QUICK), Process()
    watch.call_ended(process)
    await until(lambda: process.pauses == 1)
    assert (process.looks, watch.stopped) == (4, 0)


async def test_nobody_looks_once_a_call_has_started_or_the_process_has_ended() -> None:
    watch, called, gone, last = RestWatch(QUICK), Process(), Process(), Process()
    for process in (called, gone, last):
        watch.call_ended(process)
    gone.gone = True
    await until(lambda: called.looks == 1)
    called.clock_s += 1
    watch.call_started(called)
    await until(lambda: last.pauses == 1)
    assert (called.looks, called.pauses, gone.looks, gone.pauses) == (1, 0, 1, 0)


@pytest_asyncio.fixture(
    loop_scope="module", scope="module", params=["namespaces", "landlock", "seccomp"]
)
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[SandboxPool]:
    pool = new_pool(request.param)
    await pool.start()
    yield pool
    await pool.close()


def new_pool(level: IsolationLevel, cpu_s: int = 4) -> SandboxPool:
    isolation = IsolationConfig(
        required="none" if level == "none" else "seccomp", unsafe=level == "none"
    )
    config = ToolServerConfig(isolation=isolation, session_cpu_s=cpu_s, call_timeout_s=5)
    return SandboxPool(config, level)


async def opened(pool: SandboxPool) -> SandboxSession:
    session = SandboxSession(pool, TOOLS, seed=1)
    await session.start()
    return session


def is_now(process: psutil.Process, status: str) -> bool:
    try:
        return process.status() == status
    except psutil.NoSuchProcess:  # it has ended since it was listed
        return False


def family(pool: SandboxPool) -> list[psutil.Process]:
    assert pool.zygote_pid
    return psutil.Process(pool.zygote_pid).children(recursive=True)


def cpu_s(pool: SandboxPool) -> float:
    found = 0.0
    for process in family(pool):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += sum(process.cpu_times()[:2])
    return found


def stopped(pool: SandboxPool) -> bool:
    return any(is_now(process, psutil.STATUS_STOPPED) for process in family(pool))


async def still(pool: SandboxPool, for_s: float = 0.3) -> None:
    """Wait until no process of the pool uses CPU any more."""
    until_s = time.monotonic() + _SETTLE_S
    while time.monotonic() < until_s:
        before = cpu_s(pool)
        await asyncio.sleep(for_s)
        if cpu_s(pool) - before < 0.02:
            return
    raise AssertionError("something goes on computing")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("tool", ["computes", "sleeps_first"])
async def test_what_goes_on_after_its_answer_is_stopped(pool: SandboxPool, tool: str) -> None:
    before = cpu_s(pool)
    session = await opened(pool)
    assert (await session.call(tool, "{}")).status is AnswerStatus.OK
    await until(lambda: stopped(pool))
    await still(pool)
    assert cpu_s(pool) - before < 2, "it ran for long"
    answer = await session.call("pid", "{}")  # it still computes, and never reads this
    assert answer.status is AnswerStatus.TIMEOUT
    session.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_session_that_was_stopped_answers_again(pool: SandboxPool) -> None:
    session = await opened(pool)
    first = await session.call("pid", "{}")
    await until(lambda: stopped(pool))
    assert await session.call("pid", "{}") != first
    assert (await session.call("pid", "{}")).text == first.text
    session.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("tool", ["thread", "grandchild"])
async def test_a_session_is_one_process_with_one_thread(pool: SandboxPool, tool: str) -> None:
    session = await opened(pool)
    assert (await session.call(tool, "{}")).status is AnswerStatus.TOOL_ERROR
    session.close()


@pytest.mark.asyncio
async def test_cpu_seconds_between_calls_are_the_sessions() -> None:
    pool = new_pool("seccomp", cpu_s=1)
    await pool.start()
    session = await opened(pool)
    assert (await session.call("sleeps_first", "{}")).status is AnswerStatus.OK
    await until(lambda: stopped(pool))  # half a second of computing
    answer = await session.call("pid", "{}")
    assert answer.text.startswith("the session used up its 1 CPU seconds"), answer
    assert answer.seconds < 5
    await pool.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("tool", ["thread", "grandchild"])
async def test_without_isolation_threads_and_grandchildren_are_stopped_too(tool: str) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    pool = new_pool("none")
    await pool.start()
    session = await opened(pool)
    answer = await session.call(tool, "{}")
    if answer.status is not AnswerStatus.OK:
        await pool.close()
        pytest.skip(f"this user may start no {tool}: {answer.text}")
    await still(pool)
    assert (await session.call("pid", "{}")).status is AnswerStatus.OK
    session.close()
    await until(lambda: not any(is_now(p, psutil.STATUS_RUNNING) for p in family(pool)))
    await pool.close()
