"""What a running job does with requests, and what it records."""

import asyncio

import pytest

from cluster.progress import Progress
from cluster.running import run_async
from cluster.training import control
from cluster.training.control import controlled
from envs.errors import TrialrunError
from rollout.store.control import (
    MAX_WORKERS,
    ControlEvent,
    ScaleRequest,
    StopRequest,
    scaled_to,
    send_request,
)
from rollout.store.run_directory import RunDirectory
from tests.cluster.training.steering import (
    Pool,
    answers,
    controls_of,
    put,
    put_text,
)


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
