"""What a running job does with requests, and what it records."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.fleet.pool_worker import Worker, WorkerState
from cluster.progress import QUIET, Progress
from cluster.running import run_async
from cluster.training import control
from cluster.training.control import Controls, controlled
from cluster.training.requested_checkpoints import RequestedCheckpoints
from envs.errors import TrialrunError
from rollout.store.control import (
    MAX_WORKERS,
    CheckpointRequest,
    ControlEvent,
    ControlRequest,
    PauseRequest,
    ResumeRequest,
    ScaleRequest,
    StopRequest,
    is_paused,
    scaled_to,
    send_request,
)
from rollout.store.journal import read_objects
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo


class Places:
    paused = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


@dataclass
class Pool:
    workers: list[Worker] = field(default_factory=list)
    places: Places = field(default_factory=Places)
    sizes: list[int] = field(default_factory=lambda: [2])
    others: dict[str, int] = field(default_factory=dict)
    aborted: list[bool] = field(default_factory=list)

    @property
    def desired(self) -> int:
        return self.sizes[-1]

    @property
    def groups(self) -> dict[str, int]:
        return {"default": self.sizes[-1], **self.others}

    def resize(self, desired: int, group: str, *, abort: bool) -> None:
        self.aborted.append(abort)
        if group == "default":
            self.sizes.append(desired)
        else:
            self.others[group] = desired


def controls_of(
    run: RunDirectory,
    pool: Pool,
    *,
    room: Callable[[str], int] = lambda group: 9,
    checkpoints: RequestedCheckpoints | None = None,
    stop: Callable[[], None] = lambda: signal.raise_signal(signal.SIGTERM),
) -> Controls:
    return Controls(run, pool, room, checkpoints or RequestedCheckpoints(no_save, 0), stop)


async def no_save(step: int) -> None:
    raise AssertionError("nobody asked for a checkpoint")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.create(tmp_path / "run", "", RunInfo(run="r", seed=0, created_at=0.0)) as run:
        run.layout.requests.mkdir()
        yield run


def put(run: RunDirectory, name: str, workers: int) -> None:
    event = ControlEvent(at=1.0, actor="ada", request=ScaleRequest(workers=workers))
    (run.layout.requests / f"{name}.json").write_text(event.model_dump_json())


def put_text(run: RunDirectory, name: str, request: str) -> None:
    row = f'{{"at": 1.0, "actor": "ada", {request}}}'
    (run.layout.requests / f"{name}.json").write_text(row)


def answers(run: RunDirectory) -> list[dict[str, Any]]:
    """The first answer to every request, not what became of it."""
    rows: list[dict[str, Any]] = [*read_objects(run.layout.control)]
    return [row for row in rows if not row["completed"]]


def test_requests_are_done_in_order_and_written_down(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    put(run, "2", 1)
    put(run, "1", 5)
    pool = Pool()
    controls_of(run, pool, room=lambda group: 2).answer(Progress())
    assert pool.sizes == [2, 5, 1]
    rows = answers(run)
    assert [(row["request_id"], row["actor"], row["request"], row["refused"]) for row in rows] == [
        ("1", "ada", {"kind": "scale", "workers": 5}, ""),
        ("2", "ada", {"kind": "scale", "workers": 1}, ""),
    ]
    assert list(run.layout.requests.iterdir()) == []
    assert [row["note"] for row in rows] == [
        "the cluster has room for 2 of 3 more; the others wait for room",
        "",
    ]
    told = " ".join(capsys.readouterr().err.split())
    assert "ada requested: scale to 5 workers (the cluster has room for 2 of 3 more;" in told
    assert "ada requested: scale to 1 workers (done)" in told


UNREADABLE = "expected a request such as"


@pytest.mark.parametrize(
    ("request_text", "reason"),
    [
        ('"request": {"kind": "scale", "workers": 0}', "expected 1 to 4096 workers, found 0"),
        (
            f'"request": {{"kind": "scale", "workers": {MAX_WORKERS + 1}}}',
            "expected 1 to 4096 workers, found 4097",
        ),
        ('"action": "scale", "detail": "0"', "expected 1 to 4096 workers, found 0"),
        (f'"request": {{"kind": "scale", "workers": {"9" * 5_000}}}', UNREADABLE),
        ('"request": {"kind": "scale", "workers": "3"}', UNREADABLE),
        ('"request": {"kind": "scale", "workers": -1}', UNREADABLE),
        ('"request": {"kind": "explode", "workers": 1}', UNREADABLE),
        ('"request": {"kind": "scale"}', UNREADABLE),
        ('"request": null', UNREADABLE),
        ('"action": "scale", "detail": "\u0663"', UNREADABLE),
        ('"action": "explode", "detail": "1"', UNREADABLE),
    ],
)
def test_an_impossible_request_is_refused(
    run: RunDirectory, request_text: str, reason: str
) -> None:
    put_text(run, "1", request_text)
    (run.layout.requests / "2.json").write_text("[[")
    pool = Pool()
    controls_of(run, pool).answer(Progress(quiet=True))
    assert pool.sizes == [2]
    refused = [str(row["refused"]) for row in answers(run)]
    assert refused[0].startswith(reason)
    assert refused[1].startswith(UNREADABLE)
    assert list(run.layout.requests.iterdir()) == []


def test_workers_are_added_and_the_last_number_is_remembered(run: RunDirectory) -> None:
    assert scaled_to(run.layout) == {}
    pool = Pool()
    for name, request in (
        ("1", '{"kind": "scale", "workers": 5}'),
        ("2", '{"kind": "scale_by", "change": -2}'),
        ("3", '{"kind": "scale_by", "change": -3}'),
        ("4", '{"kind": "stop"}'),
    ):
        put_text(run, name, f'"request": {request}')
    controls_of(run, pool, stop=lambda: None).answer(Progress(quiet=True))
    assert pool.sizes == [2, 5, 3]
    rows = answers(run)
    assert [row["workers"] for row in rows] == [5, 3, None, None]
    assert rows[2]["refused"] == "expected 1 to 4096 workers, found 0"
    assert scaled_to(run.layout) == {"default": 3}


def test_the_number_that_an_older_version_answered_is_remembered(run: RunDirectory) -> None:
    answer = '"request": {"kind": "scale", "workers": 4}, "request_id": "1", "refused": ""'
    run.layout.control.write_text(f'{{"at": 1.0, "actor": "ada", {answer}}}\n')
    assert scaled_to(run.layout) == {"default": 4}


def test_groups_are_resized_each_for_itself_and_remembered(run: RunDirectory) -> None:
    pool = Pool(others={"big": 1})
    for name, request in (
        ("1", '{"kind": "scale", "workers": 0, "group": "big", "abort": true}'),
        ("2", '{"kind": "scale_by", "change": 3, "group": "big"}'),
        ("3", '{"kind": "scale", "workers": 1, "group": "small"}'),
        ("4", '{"kind": "scale", "workers": 0}'),
        ("5", '{"kind": "scale", "workers": 0, "group": "big"}'),
        ("6", '{"kind": "scale_by", "change": -1, "group": "default"}'),
    ):
        put_text(run, name, f'"request": {request}')
    controls_of(run, pool).answer(Progress(quiet=True))
    rows = answers(run)
    refused = [str(row["refused"]) for row in rows]
    assert refused[2] == "expected a group of workers (default, big), found 'small'"
    assert [bool(text) for text in refused] == [False, False, True, False, True, True]
    assert refused[4] == "expected 1 to 4096 workers, found 0"
    assert refused[5] == "expected 0 to 4096 workers, found -1"
    assert (pool.sizes, pool.others) == ([2, 0], {"big": 3})
    assert pool.aborted == [True, False, False]
    assert scaled_to(run.layout) == {"big": 3, "default": 0}


def test_the_last_worker_of_all_is_not_taken(run: RunDirectory) -> None:
    put_text(run, "1", '"request": {"kind": "scale", "workers": 0, "group": "big"}')
    pool = Pool(sizes=[0], others={"big": 2})
    controls_of(run, pool).answer(Progress(quiet=True))
    (row,) = answers(run)
    assert row["refused"] == "expected 1 to 4096 workers, found 0" and pool.others == {"big": 2}


def test_a_job_that_is_asked_to_stop_answers_first(run: RunDirectory) -> None:
    event = ControlEvent(at=1.0, actor="ada", request=StopRequest())
    (run.layout.requests / "1.json").write_text(event.model_dump_json())
    answered: list[int] = []
    pool = Pool()
    controls_of(
        run,
        pool,
        stop=lambda: answered.append(len(answers(run))),
    ).answer(Progress(quiet=True))
    assert answered == [1] and pool.sizes == [2]
    (row,) = answers(run)
    assert (row["request"], row["refused"]) == ({"kind": "stop"}, "")
    assert row["note"] == "the job ends now; finished work is kept"


def test_a_request_to_stop_ends_the_command_as_sigterm_does(run: RunDirectory) -> None:
    (run.layout.requests / "1.json").write_text(
        ControlEvent(at=1.0, actor="ada", request=StopRequest()).model_dump_json()
    )

    async def job() -> None:
        async with controlled(controls_of(run, Pool()), Progress(quiet=True)):
            await asyncio.sleep(60)

    with pytest.raises(TrialrunError, match=r"stopped on request .* with --requeue"):
        run_async(job())


def test_a_request_of_an_older_client_is_carried_out(run: RunDirectory) -> None:
    put_text(run, "1", '"action": "scale", "detail": "4", "request": "", "refused": ""')
    pool = Pool()
    controls_of(run, pool).answer(Progress(quiet=True))
    assert pool.sizes == [2, 4]


async def test_a_job_answers_while_the_block_lasts(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_POLL_S", 0.01)
    pool = Pool()
    event = ControlEvent(at=1.0, actor="ada", request=ScaleRequest(workers=7))
    async with controlled(controls_of(run, pool), Progress(quiet=True)):
        answer = await asyncio.to_thread(send_request, run.layout, event, 10.0)
    assert (answer.refused, pool.desired) == ("", 7)


async def test_a_request_that_cannot_be_done_ends_nothing(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control, "_POLL_S", 0.01)
    rooms = iter([9])

    def room(group: str) -> int:
        return next(rooms, 0) or int("no cluster")

    pool = Pool()
    put(run, "1", 3)
    put(run, "2", 4)
    async with controlled(controls_of(run, pool, room=room), Progress(quiet=True)):
        while "no cluster" not in caplog.text:
            await asyncio.sleep(0.01)
        rooms = iter([9])
        put(run, "3", 5)
        while pool.desired != 5:
            await asyncio.sleep(0.01)
    assert pool.sizes == [2, 3, 5]


def ask(run: RunDirectory, name: str, request: ControlRequest) -> None:
    event = ControlEvent(at=1.0, actor="ada", request=request)
    (run.layout.requests / f"{name}.json").write_text(event.model_dump_json())


def told(run: RunDirectory) -> list[tuple[object, object]]:
    return [(row["completed"], row["note"]) for row in read_objects(run.layout.control)]


def no_client() -> Any:
    return None


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
