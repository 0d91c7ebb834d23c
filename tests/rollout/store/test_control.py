"""Requests to a running job: how they reach it, and the answers that the requester gets."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.errors import DeadlineError, MissingError, StoreError
from rollout.store.control import ControlEvent, ScaleRequest, send_request, take_requests
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunLayout
from rollout.store.run_lock import is_written

EVENT = ControlEvent(at=1.0, actor="ada", request=ScaleRequest(workers=3))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    info = RunInfo(run="r", seed=0, created_at=0.0)
    with RunDirectory.create(tmp_path / "run", "", info) as run:
        yield run


def answer_next(run: RunDirectory, **fields: str) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for name, request in take_requests(run.layout):
            assert request is not None
            run.record_control(request.model_copy(update={"request_id": name} | fields))
            return
        time.sleep(0.005)


@pytest.mark.parametrize("refused", ["", "too many"])
def test_a_requester_gets_the_answer_to_its_own_request(run: RunDirectory, refused: str) -> None:
    run.record_control(EVENT)  # an earlier request of another client
    job = threading.Thread(target=answer_next, args=(run,), kwargs={"refused": refused})
    job.start()
    answer = send_request(run.layout, EVENT, 10.0)
    job.join()
    assert (answer.actor, answer.request) == ("ada", ScaleRequest(workers=3))
    assert answer.refused == refused
    assert list(run.layout.requests.iterdir()) == []


def test_a_request_without_an_answer_is_withdrawn(run: RunDirectory) -> None:
    with pytest.raises(DeadlineError, match=r"did not answer within 0\.2 s"):
        send_request(run.layout, EVENT, 0.2)
    assert list(run.layout.requests.iterdir()) == []


def test_a_run_that_cannot_be_written_to_is_one_error(run: RunDirectory) -> None:
    run.layout.requests.touch()
    with pytest.raises(StoreError, match=r"could not make the folder .*requests: File exists"):
        send_request(run.layout, EVENT, 0.2)


def test_without_a_job_there_is_nobody_to_send_request(run: RunDirectory) -> None:
    assert is_written(run.layout)
    run.close()
    assert not is_written(run.layout)
    with pytest.raises(MissingError, match=r"a running job that writes to .*, found none"):
        send_request(run.layout, EVENT, 5.0)
    assert not is_written(RunLayout(run.path / "nowhere"))
    RunDirectory.open(run.path)  # the check of the lock did not keep it


def test_requests_come_in_order_and_unreadable_files_as_none(run: RunDirectory) -> None:
    folder = run.layout.requests
    folder.mkdir()
    contents = {
        "2": EVENT.model_dump_json(),
        "1": EVENT.model_copy(update={"request": ScaleRequest(workers=1)}).model_dump_json(),
        "3": "{}",
        "4": "not JSON",
        "5": "[" * 100_000,
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(content)
    (folder / ".6.json.new").write_text("being written")
    (folder / "7.json").mkdir()
    found = [(name, event and event.request) for name, event in take_requests(run.layout)]
    one, three = ScaleRequest(workers=1), ScaleRequest(workers=3)
    assert found == [("1", one), ("2", three), ("3", None), ("4", None), ("5", None)]
    assert sorted(path.name for path in folder.iterdir()) == [".6.json.new", "7.json"]


def test_events_with_text_details_are_still_read() -> None:
    row = {"at": 1.0, "actor": "ada", "action": "scale", "detail": "3", "request": "7"}
    assert ControlEvent.model_validate(row) == EVENT.model_copy(update={"request_id": "7"})
    refused = {**row, "detail": "many", "refused": "expected a number", "note": ""}
    event = ControlEvent.model_validate(refused)
    assert (event.request, event.refused) == (None, "expected a number")
