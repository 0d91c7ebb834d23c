"""Pauses, checkpoints between steps, and when what was asked for has taken effect."""

import asyncio
from functools import partial

import pytest

from cluster.fleet.pool_worker import Worker, WorkerState
from cluster.progress import QUIET, Progress
from cluster.training import control
from cluster.training.control import controlled
from cluster.training.requested_checkpoints import RequestedCheckpoints
from envs.errors import TrialrunError
from rollout.store.control import (
    CheckpointRequest,
    ControlEvent,
    ControlRequest,
    PauseRequest,
    ResumeRequest,
    ScaleRequest,
    is_paused,
    scaled_to,
    send_request,
)
from rollout.store.journal import read_objects
from rollout.store.run_directory import RunDirectory
from tests.cluster.training.steering import (
    Pool,
    ask,
    controls_of,
    no_client,
    no_save,
    put,
    told,
)


def test_a_pause_takes_effect_when_the_last_episode_has_ended(run: RunDirectory) -> None:
    worker = Worker("worker-1", no_client(), running=2)
    pool = Pool(workers=[worker])
    controls = controls_of(run, pool)
    ask(run, "1", PauseRequest())
    controls.answer(QUIET)
    assert pool.places.paused and is_paused(run.layout)
    assert told(run) == [(False, "no episode starts; 2 that run are finished first")]
    worker.running = 0
    controls.answer(QUIET)
    assert told(run)[1:] == [(True, "every episode has ended, and none starts")]
    ask(run, "2", ResumeRequest())
    controls.answer(QUIET)
    assert not pool.places.paused and not is_paused(run.layout)
    actors = [row["actor"] for row in read_objects(run.layout.control)]
    assert told(run)[2:] == [(False, "episodes start again")] and set(actors) == {"ada"}


def test_a_pause_that_was_ended_before_it_took_effect_says_so(run: RunDirectory) -> None:
    pool = Pool(workers=[Worker("worker-1", no_client(), running=1)])
    controls = controls_of(run, pool)
    ask(run, "1", PauseRequest())
    ask(run, "2", ResumeRequest())
    controls.answer(QUIET)
    assert told(run)[-1] == (True, "resumed before every episode had ended")
    assert controls.waiting == []


def test_a_new_process_begins_without_the_pause_of_the_last_one(run: RunDirectory) -> None:
    ask(run, "1", PauseRequest())
    controls_of(run, Pool()).answer(QUIET)
    assert is_paused(run.layout)
    controls_of(run, Pool()).begin()
    assert not is_paused(run.layout)
    assert told(run)[-1] == (False, "the job was started again, without the pause")


def test_scaling_takes_effect_when_the_workers_serve(run: RunDirectory) -> None:
    pool = Pool(workers=[Worker("worker-1", no_client(), state=WorkerState.HEALTHY)])
    controls = controls_of(run, pool)
    put(run, "1", 2)
    controls.answer(QUIET)
    assert told(run) == [(False, "")]
    pool.workers.append(Worker("worker-2", no_client(), state=WorkerState.HEALTHY))
    controls.answer(QUIET)
    assert told(run)[1:] == [(True, "2 workers serve")]
    assert scaled_to(run.layout) == {"default": 2}
    put(run, "2", 1)
    controls.answer(QUIET)
    put(run, "3", 3)
    controls.answer(QUIET)
    assert told(run)[-1] == (True, "another request came before it had taken effect")
    assert scaled_to(run.layout) == {"default": 3}


async def test_a_checkpoint_is_taken_at_once_while_groups_are_awaited(run: RunDirectory) -> None:
    saved: list[int] = []
    groups: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def save(step: int) -> None:
        saved.append(step)

    async def collect() -> str:
        return await groups

    requested = RequestedCheckpoints(save, 3)
    controls = controls_of(run, Pool(), checkpoints=requested)
    ask(run, "1", CheckpointRequest())  # a step is at work: the fourth
    controls.answer(QUIET)
    assert told(run) == [(False, "the checkpoint of step 4 is taken when the step has ended")]
    waiting = asyncio.create_task(requested.while_waiting(5, collect()))
    async with asyncio.timeout(5):
        while not saved:
            await asyncio.sleep(0)
    assert saved == [4] and not waiting.done()
    controls.answer(QUIET)
    assert told(run)[-1] == (True, f"it is in {run.layout.checkpoints / '000004'}")
    ask(run, "2", CheckpointRequest())
    controls.answer(QUIET)
    assert told(run)[-1] == (False, "the checkpoint of step 4 is there already")
    groups.set_result("groups")
    assert await waiting == "groups" and saved == [4]


async def test_who_waits_for_the_effect_gets_it_at_once_where_there_is_nothing_to_wait_for(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_POLL_S", 0.01)
    worker = Worker("worker-1", no_client(), running=0)
    pool = Pool(workers=[worker])

    async def ask_and_wait(request: ControlRequest) -> ControlEvent:
        event = ControlEvent(at=1.0, actor="ada", request=request)
        asked = partial(send_request, run.layout, event, 10.0, effect_within_s=10.0)
        return await asyncio.to_thread(asked)

    async with controlled(controls_of(run, pool), Progress(quiet=True)):
        at_once = await ask_and_wait(PauseRequest())
        assert (at_once.pending, at_once.completed) == (False, False)
        assert at_once.note == "no episode runs, and none starts"
        await ask_and_wait(ResumeRequest())
        worker.running = 1
        later = asyncio.create_task(ask_and_wait(PauseRequest()))
        async with asyncio.timeout(10):
            while not pool.places.paused:
                await asyncio.sleep(0.01)
        assert not later.done()
        worker.running = 0
        assert (await later).completed
        refused = await ask_and_wait(ScaleRequest(workers=0))
        assert refused.refused


async def test_before_the_first_step_a_checkpoint_waits_for_its_end(run: RunDirectory) -> None:
    saved: list[int] = []

    async def save(step: int) -> None:
        saved.append(step)

    async def collect(groups: str) -> str:
        await asyncio.sleep(0)
        return groups

    requested = RequestedCheckpoints(save, 0)
    assert requested.request() == 1
    assert await requested.while_waiting(1, collect("first")) == "first" and saved == []
    assert await requested.while_waiting(2, collect("second")) == "second" and saved == [1]


async def test_an_error_of_the_groups_is_raised(run: RunDirectory) -> None:
    async def collect() -> str:
        raise TrialrunError("no group comes")

    with pytest.raises(TrialrunError, match="no group comes"):
        await RequestedCheckpoints(no_save, 0).while_waiting(1, collect())
