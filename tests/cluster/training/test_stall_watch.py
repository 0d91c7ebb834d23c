"""What stalls a job is named: the learner, a worker and its episode, the push, the prompts."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.fleet.pool_worker import Activity as Doing
from cluster.fleet.pool_worker import Outcomes, Worker, WorkerReport, WorkerState
from cluster.training.activity import Activity, Part
from cluster.training.loop_watch import LoopWatch
from cluster.training.stall_watch import FAILURES, StallWatch, Surroundings


@dataclass
class Stage:
    """A job of which every part can be set."""

    now: float = 0.0
    workers: list[Worker] = field(default_factory=list)
    outcomes: Outcomes = field(default_factory=Outcomes)
    in_flight: int = 3
    quarantined: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.activity = Activity(lambda: self.now)
        self.watch = StallWatch(
            self.activity,
            Surroundings(
                workers=lambda: self.workers,
                outcomes=self.outcomes,
                in_flight=lambda: self.in_flight,
                learner=self.learner,
                quarantined=lambda: self.quarantined,
            ),
            10.0,
            lambda: self.now,
        )

    async def learner(self) -> str:
        return "rank 1 (process 7 on node b): its process is stopped."

    def add(self, name: str, state: WorkerState, since: float = 0.0, **leases: float) -> Worker:
        client: Any = None
        worker = Worker(name, client, state=state, since=since)
        worker.leases = dict(leases)
        self.workers.append(worker)
        return worker

    async def at(self, now: float) -> str:
        self.now = now
        return await self.watch.look()


async def test_a_stall_is_said_with_back_off_and_its_end_too() -> None:
    stage = Stage()
    stage.activity.enter(Part.LEARN, 3)
    said = {now: await stage.at(now) for now in range(0, 90, 5)}
    assert [now for now, line in said.items() if line] == [10, 20, 40, 80]
    assert said[10] == (
        "warning: stalled: nothing has moved for 10 s. The job trains (step 3), for 10 s now. "
        "rank 1 (process 7 on node b): its process is stopped."
    )
    assert stage.watch.culprit
    stage.activity.enter(Part.RECORD, 3)
    assert await stage.at(90) == "something moves again after 90 s"
    assert (stage.watch.culprit, stage.watch.take_stalled_s()) == ("", 75.0)
    assert stage.watch.take_stalled_s() == 0.0


async def test_episodes_that_end_are_progress_while_groups_are_awaited_only() -> None:
    stage = Stage()
    stage.add("worker-1", WorkerState.HEALTHY)
    stage.activity.enter(Part.COLLECT, 1)
    for now in range(0, 60, 5):
        stage.outcomes.counted += 1
        assert await stage.at(now) == ""
    stage.activity.enter(Part.LEARN, 1)
    stage.outcomes.counted += 1
    assert await stage.at(60) == ""
    stage.outcomes.counted += 1
    assert "stalled" in await stage.at(66)


async def test_the_oldest_episode_is_named_with_its_worker_and_what_it_waits_for() -> None:
    stage = Stage()
    stage.add("worker-1", WorkerState.HEALTHY, e1=9.0)
    slow = stage.add("worker-2", WorkerState.HEALTHY, e2=2.0, e3=4.0)
    doing = Doing(episode="e2", what="its tools (search)", for_s=17.0)
    slow.report = WorkerReport(node="n1", oldest=doing)
    stage.activity.enter(Part.COLLECT, 1)
    line = await stage.at(20)
    assert (
        "The oldest of 3 running episodes is e2, on worker-2 (healthy, node n1) for 18 s." in line
    )
    assert "There e2 waits for its tools (search), for 17 s." in line


@pytest.mark.parametrize(
    ("in_flight", "said"),
    [(0, "no new prompts come"), (2, "though 2 groups are in flight")],
)
async def test_idle_workers_point_to_the_prompts_or_the_scheduler(
    in_flight: int, said: str
) -> None:
    stage = Stage(in_flight=in_flight)
    stage.add("worker-1", WorkerState.HEALTHY)
    stage.activity.enter(Part.COLLECT, 1)
    assert said in await stage.at(20)


async def test_workers_that_do_not_come_up_are_named_with_their_last_failure() -> None:
    stage = Stage(quarantined=["node a is in quarantine"])
    stage.add("worker-7", WorkerState.STARTING, since=5.0)
    dead = stage.add("worker-6", WorkerState.DEAD, since=3.0)
    dead.failure = "no such GPU"
    stage.activity.enter(Part.COLLECT, 1)
    line = await stage.at(20)
    assert "No worker is healthy: worker-6" in line and "after: no such GPU" in line
    assert "worker-7 (which has no place yet) has been starting for 15 s" in line
    assert "node a is in quarantine." in line


async def test_a_push_names_the_workers_that_load() -> None:
    stage = Stage()
    stage.add("worker-1", WorkerState.HEALTHY)
    stage.add("worker-2", WorkerState.STALE, since=1.0)
    stage.activity.enter(Part.PUSH, 1)
    line = await stage.at(20)
    assert "worker-2 (which has no place yet) has been stale for 19 s" in line
    assert "worker-1" not in line


async def test_episodes_that_all_fail_are_said_before_anything_stalls() -> None:
    stage = Stage()
    stage.outcomes.last_error = "no server"
    stage.outcomes.failed_in_a_row = FAILURES - 1
    assert await stage.at(1) == ""
    stage.outcomes.failed_in_a_row = FAILURES
    line = await stage.at(2)
    assert f"the last {FAILURES} episodes all failed" in line and line.endswith("no server")
    stage.outcomes.failed_in_a_row = 2 * FAILURES
    assert await stage.at(3) == ""
    stage.outcomes.failed_in_a_row = 4 * FAILURES
    assert await stage.at(4)
    stage.outcomes.failed_in_a_row = 0
    assert stage.watch.failing == ""


async def test_a_watch_can_be_turned_off() -> None:
    stage = Stage()
    stage.watch = StallWatch(stage.activity, stage.watch._around, 0.0, lambda: stage.now)
    assert await stage.at(1e6) == ""


def test_who_holds_up_the_loop_is_named_with_the_line() -> None:
    said: list[str] = []
    named = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        named.set()

    def blocks_everything() -> None:
        named.wait(10)

    with LoopWatch(0.05, say) as loop:
        loop.beat()
        blocks_everything()
    assert "the driver's event loop has stood still for" in said[0]
    assert "blocks_everything (" in said[0] and "test_stall_watch.py:" in said[0]


def test_a_loop_that_turns_is_not_named() -> None:
    said: list[str] = []
    until = time.monotonic() + 0.3
    with LoopWatch(0.1, said.append) as loop:
        while time.monotonic() < until:
            loop.beat()
            time.sleep(0.01)
    assert said == []
