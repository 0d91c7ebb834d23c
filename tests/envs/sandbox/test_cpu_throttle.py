"""CPU throttling: a long CPU-bound call is paused while short calls arrive."""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator

import psutil
import pytest
import pytest_asyncio

from envs.config import IsolationConfig, IsolationLevel, ToolServerConfig
from envs.sandbox.cpu_throttle import CpuThrottle, ThrottleTiming
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.tools import AnswerStatus, ToolSet, ToolSpec

CONFIG = ToolServerConfig(
    isolation=IsolationConfig(required="seccomp"), call_timeout_s=60, long_call_share=0.5
)
SLOW_MACHINE = ThrottleTiming(
    look_s=0.1, longest_look_s=0.2, cpu_bound=0.02, cycle_s=1.0, many_calls=5
)
"""Of the tests with real processes: on a busy machine even a call that only sleeps 1 ms takes long,
and one that computes without end gets little of a core.
"""
SOURCE = """
import time
def compute(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return "computed"
def wait(seconds):
    time.sleep(seconds)
    return "waited"
"""
TOOLS = ToolSet(
    tools=tuple(ToolSpec(name=n, description="", parameters={}) for n in ("compute", "wait")),
    sources=(SOURCE,) * 2,
    functions=("compute", "wait"),
)


class Process:
    """A process that computes, unless it is paused or waits."""

    def __init__(self, *, computes: bool = True) -> None:
        self._computes = computes
        self.paused = False
        self.pauses = 0

    def cpu_s(self) -> float | None:
        return time.monotonic() if self._computes else 0.0

    def pause(self) -> None:
        self.paused = True
        self.pauses += 1

    def resume(self) -> None:
        self.paused = False


class Gone(Process):
    """A process that cannot be measured."""

    def cpu_s(self) -> float | None:
        return None


class Crowd:
    """Short calls that arrive for as long as the block lasts; each takes one millisecond."""

    def __init__(self, calls: CpuThrottle) -> None:
        self._calls = calls

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._keep_calling())

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_calling(self) -> None:
        while True:
            process = Process()
            self._calls.call_started(process)
            await asyncio.sleep(0.001)
            self._calls.call_ended(process)


async def until(what: Callable[[], bool]) -> None:
    """Wait for a condition that has no event; the deadline is far, for a busy machine."""
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.001)


async def test_a_computing_call_is_paused_and_resumed_in_cycles_while_short_calls_arrive() -> None:
    calls, hog = CpuThrottle(0, share=0.1), Process()
    calls.call_started(hog)
    async with Crowd(calls):
        for _ in range(3):
            await until(lambda: hog.paused)
            await until(lambda: not hog.paused)


async def paused_twice() -> None:
    """Wait until another throttle has paused a computing call for the second time."""
    calls, hog = CpuThrottle(0, share=0.1), Process()
    calls.call_started(hog)
    async with Crowd(calls):
        await until(lambda: hog.pauses == 2)


async def test_computing_calls_without_short_ones_are_never_paused() -> None:
    calls, hog, other = CpuThrottle(0, share=0.1), Process(), Process()
    for process in (hog, other):
        calls.call_started(process)
    await paused_twice()
    assert (hog.pauses, other.pauses) == (0, 0)
    async with Crowd(calls):
        await until(lambda: hog.paused and other.paused)


async def test_a_call_that_waits_or_cannot_be_measured_or_is_short_is_never_paused() -> None:
    calls, hog = CpuThrottle(0, share=0.1), Process()
    others = [Process(computes=False), Gone()]
    for process in (hog, *others):
        calls.call_started(process)
    async with Crowd(calls):
        await until(lambda: hog.pauses == 2)
    assert [process.pauses for process in others] == [0, 0]


async def test_a_process_that_was_paused_after_its_answer_is_resumed() -> None:
    calls, hog = CpuThrottle(0, share=0.1), Process()
    calls.call_started(hog)
    async with Crowd(calls):
        await until(lambda: hog.paused)
        calls.call_ended(hog)
        assert not hog.paused
        next_one = Process()
        calls.call_started(next_one)
        await until(lambda: next_one.paused)
        assert hog.pauses == 1


async def test_spare_cores_go_to_the_calls_that_computed_first() -> None:
    calls = CpuThrottle(1, share=0.1)
    first, second, third = Process(), Process(), Process()
    for process in (first, second):
        calls.call_started(process)
    async with Crowd(calls):
        await until(lambda: second.paused)
        assert first.pauses == 0
        calls.call_ended(first)
        await until(lambda: not second.paused)
        calls.call_started(third)
        pauses = second.pauses
        await until(lambda: third.paused)
    assert second.pauses == pauses  # it has the spare core now


async def test_a_share_of_one_pauses_nothing() -> None:
    calls, hog = CpuThrottle(0, share=1.0), Process()
    calls.call_started(hog)
    async with Crowd(calls):
        await paused_twice()
    assert hog.pauses == 0


@pytest.fixture
def two_cores() -> Iterator[None]:
    """Restrict this process to two cores, so that no core is spare for long calls."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:2])
    yield
    os.sched_setaffinity(0, cores)


@contextlib.asynccontextmanager
async def started(
    level: IsolationLevel, config: ToolServerConfig = CONFIG
) -> AsyncIterator[SandboxPool]:
    pool = SandboxPool(config, level, SLOW_MACHINE)
    try:
        await pool.start()
        yield pool
    finally:
        await pool.close()


@pytest_asyncio.fixture(params=["namespaces", "seccomp"])
async def pool(request: pytest.FixtureRequest, two_cores: None) -> AsyncIterator[SandboxPool]:
    async with started(request.param) as pool:
        yield pool


async def opened(pool: SandboxPool) -> SandboxSession:
    session = SandboxSession(pool, TOOLS, 1)
    await session.start()
    return session


def paused_processes(pool: SandboxPool) -> list[psutil.Process]:
    """Return the stopped processes below the zygote."""
    assert pool.zygote_pid
    found = []
    for process in psutil.Process(pool.zygote_pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                found.append(process)
    return found


@contextlib.asynccontextmanager
async def crowd(pool: SandboxPool) -> AsyncIterator[None]:
    """Make short calls in a session while the block lasts; it starts once many have ended."""
    neighbour = await opened(pool)
    many = asyncio.Event()

    async def keep_calling() -> None:
        for number in itertools.count():
            answer = await neighbour.call("wait", '{"seconds": 0.001}')
            assert answer.text == "waited", answer
            if number == 10:
                many.set()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(keep_calling())
        await many.wait()
        yield
        task.cancel()


async def test_a_computing_tool_is_paused_for_its_neighbours_and_still_ends(
    pool: SandboxPool,
) -> None:
    computing = await opened(pool)
    seen_paused = counted = 0
    async with crowd(pool):
        running = asyncio.create_task(computing.call("compute", '{"seconds": 0.5}'))
        async with asyncio.timeout(60):
            while not running.done():
                seen_paused += len(paused_processes(pool))
                counted += pool.calls_throttled
                await asyncio.sleep(0.01)
    answer = await running
    assert (answer.status, answer.text) == (AnswerStatus.OK, "computed")
    assert counted >= seen_paused > 0
    await until(lambda: pool.calls_throttled == 0)
    assert not paused_processes(pool)
    assert (await computing.call("wait", '{"seconds": 0}')).text == "waited"


async def test_a_paused_tool_is_stopped_at_its_deadline(two_cores: None) -> None:
    hasty = CONFIG.model_copy(update={"call_timeout_s": 4.0})
    async with started("namespaces", hasty) as pool, crowd(pool), asyncio.timeout(60):
        endless = await opened(pool)
        running = asyncio.create_task(endless.call("compute", '{"seconds": 60}'))
        await until(lambda: bool(paused_processes(pool)))
        assert (await running).status is AnswerStatus.TIMEOUT
        assert (await endless.call("wait", '{"seconds": 0}')).text == "waited"


async def test_a_paused_session_can_be_closed(pool: SandboxPool) -> None:
    endless = await opened(pool)
    async with crowd(pool), asyncio.timeout(60):
        running = asyncio.create_task(endless.call("compute", '{"seconds": 60}'))
        await until(lambda: bool(paused_processes(pool)))
        (process,) = paused_processes(pool)
        endless.close()
        assert (await running).status is AnswerStatus.INFRA_ERROR
        await until(lambda: not process.is_running())


async def test_a_paused_child_does_not_wake_the_zygote(pool: SandboxPool) -> None:
    """Otherwise each pause would cost the neighbours what it is meant to save."""
    session = await opened(pool)
    assert pool.zygote_pid
    below = psutil.Process(pool.zygote_pid).children(recursive=True)
    child = max(below, key=lambda process: process.pid)  # waits for a session
    zygote = child.parent()
    assert zygote
    before = zygote.num_ctx_switches().voluntary
    for _ in range(20):
        child.suspend()
        child.resume()
        await session.call("wait", '{"seconds": 0.005}')
    assert zygote.num_ctx_switches().voluntary - before < 10
