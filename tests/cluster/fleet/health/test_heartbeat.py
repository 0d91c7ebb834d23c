"""Who does not answer: dead, stopped, still, busy or out of sight."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from cluster.fleet.health import heartbeat
from cluster.fleet.health.heartbeat import NoAnswer, Patience, await_answer
from cluster.fleet.health.losses import LossKind
from cluster.fleet.health.rank_signs import LOOKS, RankSigns
from cluster.fleet.health.vitals import GONE, Sign, Vital, descendants, vital_of

PATIENCE = Patience(answer_s=0.02, still_s=0.02, unseen_s=0.05, limit_s=0.2)
WAITS = "import time; print(flush=True); time.sleep(60)"
WORKS = "print(flush=True)\nwhile True: pass"
Start = Callable[[str], int]


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "TURN_S", 0.01)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python with some code; returns the process once the code runs."""
    started: list[subprocess.Popen[bytes]] = []

    def run(code: str) -> int:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process.pid

    yield run
    for process in started:
        process.kill()
        process.communicate()


async def never() -> None:
    await asyncio.Event().wait()


async def given_up(vitals: Iterator[Vital | None]) -> NoAnswer:
    async def look() -> Vital | None:
        return next(vitals)

    with pytest.raises(NoAnswer) as raised:
        await await_answer(never(), look, PATIENCE)
    return raised.value


def every(vital: Vital | None) -> Iterator[Vital | None]:
    while True:
        yield vital


async def test_an_answer_is_taken_and_an_error_is_the_callers() -> None:
    async def look() -> Vital:
        raise AssertionError("nobody looks at a process that answers")

    async def answers() -> int:
        return 7

    async def fails() -> int:
        raise ValueError("no")

    assert await await_answer(answers(), look, PATIENCE) == 7
    with pytest.raises(ValueError, match="no"):
        await await_answer(fails(), look, PATIENCE)


async def test_an_answer_that_comes_while_it_is_looked_at_counts() -> None:
    answer = asyncio.get_running_loop().create_future()

    async def look() -> Vital:
        answer.set_result("late")
        return Vital(sign=Sign.STOPPED)

    assert await await_answer(answer, look, PATIENCE) == "late"


@pytest.mark.parametrize(
    ("vital", "kind"),
    [
        (GONE, LossKind.DIED),
        (Vital(sign=Sign.STOPPED), LossKind.FROZEN),
        (Vital(sign=Sign.ALIVE, cpu_s=5.0), LossKind.FROZEN),
        (Vital(sign=Sign.ALIVE, at_work=True), LossKind.UNRESPONSIVE),
        (None, LossKind.UNREACHABLE),
    ],
)
async def test_who_does_not_answer_is_given_up_for_what_is_seen(
    vital: Vital | None, kind: LossKind
) -> None:
    assert (await given_up(every(vital))).kind is kind


async def test_who_uses_the_processor_between_two_looks_is_busy() -> None:
    used = (Vital(sign=Sign.ALIVE, cpu_s=0.005 * look) for look in range(1000))
    assert (await given_up(used)).kind is LossKind.UNRESPONSIVE


async def test_a_process_that_is_stopped_and_continued_is_not_given_up_for_that() -> None:
    def signs() -> Iterator[Vital]:
        while True:
            yield Vital(sign=Sign.STOPPED)
            yield Vital(sign=Sign.STOPPED)
            yield Vital(sign=Sign.ALIVE, at_work=True)

    assert (await given_up(signs())).kind is LossKind.UNRESPONSIVE


async def test_a_loop_that_stood_still_gives_nobody_up() -> None:
    """The answer came while the caller's loop stood still for longer than every limit."""
    answer = asyncio.get_running_loop().create_future()

    async def look() -> Vital:
        return Vital(sign=Sign.STOPPED)

    waiting = asyncio.create_task(await_answer(answer, look, PATIENCE))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.3, answer.set_result, "in time")
    time.sleep(0.5)
    assert await waiting == "in time"


async def test_real_processes_show_whether_they_wait_work_are_stopped_or_gone(
    start: Start,
) -> None:
    waits, works = start(WAITS), start(WORKS)
    before = vital_of(works)
    assert before.sign is Sign.ALIVE and before.started
    async with asyncio.timeout(10):
        while vital_of(waits).at_work:
            await asyncio.sleep(0.01)
        while vital_of(works).cpu_s == before.cpu_s:
            await asyncio.sleep(0.01)
        assert {waits, works} <= set(descendants(os.getpid()))
        os.kill(works, signal.SIGSTOP)
        while vital_of(works).sign is not Sign.STOPPED:
            await asyncio.sleep(0.01)
        os.kill(works, signal.SIGKILL)
        while vital_of(works).sign is not Sign.GONE:
            await asyncio.sleep(0.01)


def test_a_rank_is_lost_after_the_same_finding_several_times_in_a_row() -> None:
    signs = RankSigns([("a", 1), ("b", 2), ("a", 3)])
    alive, stopped = Vital(sign=Sign.ALIVE), Vital(sign=Sign.STOPPED)
    assert signs.nodes == {"a": [1, 3], "b": [2]}
    for look in range(LOOKS):
        assert signs.lost() == ""
        signs.note("a", [alive, stopped])
        signs.note("b", None if look else [alive])
    assert signs.lost() == "rank 2 (process 3 on node a): its process is stopped"
    signs.note("a", [alive, alive])
    assert signs.lost() == ""
    signs.note("b", None)
    assert signs.lost() == "rank 1 (process 2 on node b): neither it nor its node answers"
    assert "waits, and computes nothing" in signs.describe("a", 3, 1, [alive, alive])
