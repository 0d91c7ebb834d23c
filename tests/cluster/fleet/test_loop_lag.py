"""Lag and deadlines on a loop whose clock jumps when the test says that it stood still."""

import asyncio
import math
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from cluster.config.run_config import RolloutsSection
from cluster.fleet.loop_lag import TICK_S, LagCounts, LoopLag
from cluster.fleet.pool import PoolTiming, RolloutPool
from envs.tasks import Task
from rollout.config import EpisodeConfig
from rollout.episode import Lease
from rollout.weights.manifest import WeightManifest


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer when nothing else is to do, or when it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0

    def time(self) -> float:
        return self.now

    def stand_still(self, seconds: float) -> None:
        self.now += seconds

    def _run_once(self) -> None:
        timers = [timer for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        if timers and not self._ready:  # type: ignore[attr-defined]
            self.now = max(self.now, min(timer.when() for timer in timers))
        super()._run_once()  # type: ignore[misc]


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main)


def loop() -> Any:
    return asyncio.get_running_loop()


def test_a_loop_on_time_has_no_lag() -> None:
    async def main() -> None:
        lag = LoopLag()
        lag.start()
        await asyncio.sleep(10)
        found = lag.take()
        assert (found.p50_s, found.p99_s, found.max_s) == (0.0, 0.0, 0.0)
        lag.close()
        assert math.isnan(lag.take().max_s)

    run(main())


def test_a_standstill_counts_for_all_the_moments_that_it_took() -> None:
    async def main() -> None:
        lag = LoopLag()
        lag.start()
        await asyncio.sleep(48)
        loop().stand_still(2)
        await asyncio.sleep(50)
        found = lag.take()
        assert found.p50_s == 0.0
        assert found.p99_s == pytest.approx(1.0, abs=0.1), "the worst of 100 s are half of the 2 s"
        assert found.max_s == pytest.approx(2.0, abs=2 * TICK_S)
        lag.close()

    run(main())


def test_a_long_standstill_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        lag = LoopLag()
        lag.start()
        await asyncio.sleep(1)
        loop().stand_still(4)
        await asyncio.sleep(1)
        assert not caplog.messages
        loop().stand_still(8)
        await asyncio.sleep(1)
        lag.close()

    run(main())
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "this process stood still for 8 s"
    ]


def test_moments_are_counted_once() -> None:
    counts = LagCounts()
    assert counts.note(0.0) == 0
    assert counts.note(5 * TICK_S + 0.001) == 5
    assert counts.take().max_s == pytest.approx(5 * TICK_S + 0.001)


def test_an_answer_that_came_while_the_loop_stood_still_is_in_time() -> None:
    """The answer is there when the loop goes on, but the deadline has passed by the clock."""

    async def main() -> None:
        lag, answer = LoopLag(), loop().create_future()
        lag.start()
        loop().call_later(1, loop().stand_still, 30)
        loop().call_later(2, answer.set_result, "here")
        async with lag.deadline(5):
            assert await two_steps(answer) == "here"
        lag.close()

    async def two_steps(answer: "asyncio.Future[str]") -> str:
        found = await answer
        await asyncio.sleep(0)
        return found

    run(main())


def test_plain_deadlines_would_miss_that_answer() -> None:
    async def main() -> None:
        answer = loop().create_future()
        loop().call_later(1, loop().stand_still, 30)
        loop().call_later(2, answer.set_result, "here")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await answer
                await asyncio.sleep(0)

    run(main())


@pytest.mark.parametrize("stood_still", [0, 30])
def test_who_never_answers_is_given_up(stood_still: int) -> None:
    async def main() -> None:
        lag, began = LoopLag(), loop().time()
        lag.start()
        loop().call_later(1, loop().stand_still, stood_still)
        with pytest.raises(TimeoutError):
            async with lag.deadline(5):
                await loop().create_future()
        waited_s = loop().time() - began - stood_still
        assert 4.99 <= waited_s <= 5 + stood_still + 1
        lag.close()

    run(main())


def test_the_deadline_of_a_block_that_ends_is_gone() -> None:
    async def main() -> None:
        lag = LoopLag()
        async with lag.deadline(1):
            pass
        await asyncio.sleep(3)

    run(main())


@dataclass
class SlowlyHeard:
    """A worker whose pings are answered after a second, in which the loop begins to stand still."""

    standstill_s: float
    pings: int = 0
    dead: bool = False

    async def start(self) -> None: ...

    async def run_episode(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        raise AssertionError

    async def load_weights(self, manifest: WeightManifest) -> None: ...

    async def ping(self) -> None:
        self.pings += 1
        answer = loop().create_future()
        if not self.dead:
            loop().call_later(0.5, loop().stand_still, self.standstill_s)
            loop().call_later(1, answer.set_result, None)
        await answer
        await asyncio.sleep(0)

    def kill(self) -> None: ...


def test_a_driver_that_stood_still_calls_no_worker_lost_but_still_finds_dead_ones() -> None:
    async def main() -> None:
        client = SlowlyHeard(standstill_s=90)
        section = RolloutsSection(ping_timeout_s=60)
        pool = RolloutPool(lambda name: client, section, PoolTiming())
        pool.resize(1)
        await pool.wait_healthy()
        await asyncio.sleep(500)
        assert client.pings > 3
        assert pool.losses == 0
        assert pool.lag.take().max_s > 80
        client.dead = True
        await asyncio.sleep(500)
        assert pool.losses > 0
        await pool.close()

    run(main())
