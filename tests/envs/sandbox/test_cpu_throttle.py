"""Short calls go first: a call that computes for long stands still while they are under way."""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable

import psutil
import pytest
import pytest_asyncio

from envs.config import IsolationConfig, IsolationLevel, ToolServerConfig
from envs.sandbox.cpu_throttle import ShortCallsFirst
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.tools import AnswerStatus, ToolSet, ToolSpec

CONFIG = ToolServerConfig(isolation=IsolationConfig(required="seccomp"), call_timeout_s=20)
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
    """A worker that computes, unless it stands or waits."""

    def __init__(self, *, computes: bool = True) -> None:
        self._computes = computes
        self.stands = False
        self.holds = 0

    def cpu_s(self) -> float | None:
        return time.monotonic() if self._computes else 0.0

    def hold(self) -> None:
        self.stands = True
        self.holds += 1

    def go_on(self) -> None:
        self.stands = False


class Gone(Process):
    """A worker that nobody can measure."""

    def cpu_s(self) -> float | None:
        return None


class Crowd:
    """Short calls that come in for as long as the block lasts; each takes one millisecond."""

    def __init__(self, calls: ShortCallsFirst) -> None:
        self._calls = calls

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._keep_calling())

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_calling(self) -> None:
        while True:
            worker = Process()
            self._calls.began(worker)
            await asyncio.sleep(0.001)
            self._calls.ended(worker)


async def until(what: Callable[[], bool]) -> None:
    """Wait for what has no event."""
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.001)


async def test_who_computes_stands_and_goes_on_in_turns_while_short_calls_come_in() -> None:
    calls, hog = ShortCallsFirst(0, share=0.1), Process()
    calls.began(hog)
    async with Crowd(calls):
        for _ in range(3):
            await until(lambda: hog.stands)
            await until(lambda: not hog.stands)


async def held_twice() -> None:
    """Wait until, elsewhere, one that computes beside short calls was held for a second time."""
    calls, hog = ShortCallsFirst(0, share=0.1), Process()
    calls.began(hog)
    async with Crowd(calls):
        await until(lambda: hog.holds == 2)


async def test_who_computes_alone_is_never_held() -> None:
    calls, hog, other = ShortCallsFirst(0, share=0.1), Process(), Process()
    for worker in (hog, other):
        calls.began(worker)
    await held_twice()
    assert (hog.holds, other.holds) == (0, 0)
    async with Crowd(calls):
        await until(lambda: hog.stands and other.stands)


async def test_who_waits_or_cannot_be_measured_or_is_short_is_never_held() -> None:
    calls, hog = ShortCallsFirst(0, share=0.1), Process()
    others = [Process(computes=False), Gone()]
    for worker in (hog, *others):
        calls.began(worker)
    async with Crowd(calls):
        await until(lambda: hog.holds == 2)
    assert [worker.holds for worker in others] == [0, 0]


async def test_an_answer_that_was_on_its_way_leaves_nobody_standing() -> None:
    calls, hog = ShortCallsFirst(0, share=0.1), Process()
    calls.began(hog)
    async with Crowd(calls):
        await until(lambda: hog.stands)
        calls.ended(hog)
        assert not hog.stands
        next_one = Process()
        calls.began(next_one)
        await until(lambda: next_one.stands)
        assert hog.holds == 1


async def test_spare_cores_are_for_the_first_that_compute() -> None:
    calls = ShortCallsFirst(1, share=0.1)
    first, second, third = Process(), Process(), Process()
    for worker in (first, second):
        calls.began(worker)
    async with Crowd(calls):
        await until(lambda: second.stands)
        assert first.holds == 0
        calls.ended(first)
        await until(lambda: not second.stands)
        calls.began(third)
        held = second.holds
        await until(lambda: third.stands)
    assert second.holds == held  # it has the spare core now


async def test_a_share_of_one_holds_nobody() -> None:
    calls, hog = ShortCallsFirst(0, share=1.0), Process()
    calls.began(hog)
    async with Crowd(calls):
        await held_twice()
    assert hog.holds == 0


@pytest_asyncio.fixture(params=["namespaces", "seccomp"])
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[SandboxPool]:
    """Return a pool that thinks it has two cores at most."""
    cores = os.sched_getaffinity(0)
    level: IsolationLevel = request.param
    os.sched_setaffinity(0, sorted(cores)[:2])
    pool = SandboxPool(CONFIG, level)
    try:
        await pool.start()
        yield pool
    finally:
        await pool.close()
        os.sched_setaffinity(0, cores)


async def opened(pool: SandboxPool) -> SandboxSession:
    session = SandboxSession(pool, TOOLS, 1)
    await session.start()
    return session


def standing(pool: SandboxPool) -> list[psutil.Process]:
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
    """Have a session make short calls for as long as the block lasts, and before it begins."""
    neighbour = await opened(pool)
    many = asyncio.Event()

    async def keep_calling() -> None:
        for number in itertools.count():
            answer = await neighbour.call("wait", '{"seconds": 0.001}')
            assert answer.text == "waited", answer
            if number == 50:
                many.set()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(keep_calling())
        await many.wait()
        yield
        task.cancel()


async def test_a_computing_tool_stands_still_for_its_neighbours_and_ends_all_the_same(
    pool: SandboxPool,
) -> None:
    computing = await opened(pool)
    stood = counted = 0
    async with crowd(pool):
        running = asyncio.create_task(computing.call("compute", '{"seconds": 0.1}'))
        async with asyncio.timeout(15):
            while not running.done():
                stood += len(standing(pool))
                counted += pool.calls_in_turns
                await asyncio.sleep(0.01)
    answer = await running
    assert (answer.status, answer.text) == (AnswerStatus.OK, "computed")
    assert counted >= stood > 0
    await until(lambda: pool.calls_in_turns == 0)
    assert not standing(pool)
    assert (await computing.call("wait", '{"seconds": 0}')).text == "waited"


async def test_a_tool_that_stands_is_stopped_at_its_deadline(pool: SandboxPool) -> None:
    hasty = SandboxPool(CONFIG.model_copy(update={"call_timeout_s": 1.0}))
    await hasty.start()
    endless = await opened(hasty)
    async with crowd(hasty), asyncio.timeout(10):
        answer = await endless.call("compute", '{"seconds": 60}')
        assert answer.status is AnswerStatus.TIMEOUT
        assert (await endless.call("wait", '{"seconds": 0}')).text == "waited"
    await hasty.close()


async def test_a_session_that_stands_can_be_closed(pool: SandboxPool) -> None:
    endless = await opened(pool)
    async with crowd(pool), asyncio.timeout(10):
        running = asyncio.create_task(endless.call("compute", '{"seconds": 60}'))
        await until(lambda: bool(standing(pool)))
        (process,) = standing(pool)
        endless.close()
        assert (await running).status is AnswerStatus.INFRA_ERROR
        await until(lambda: not process.is_running())


async def test_the_fork_server_hears_of_ends_alone(pool: SandboxPool) -> None:
    """A stopped child that woke its zygote would cost the neighbours what it spares them."""
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
