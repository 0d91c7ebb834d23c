"""Requests to a job at work: how they reach it, and what who asks is told."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.errors import DeadlineError, MissingError, StoreError
from rollout.store.control import ControlEvent, ask, take_requests
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunLayout
from rollout.store.run_lock import is_written

WISH = ControlEvent(at=1.0, actor="ada", action="scale", detail="3")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    info = RunInfo(run="r", seed=0, created_at=0.0)
    with RunDirectory.create(tmp_path / "run", "", info) as run:
        yield run


def answer_next(run: RunDirectory, **told: str) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for name, request in take_requests(run.layout):
            assert request is not None
            run.record_control(request.model_copy(update={"request": name} | told))
            return
        time.sleep(0.005)


@pytest.mark.parametrize("refused", ["", "too many"])
def test_who_asks_gets_the_answer_to_its_own_request(run: RunDirectory, refused: str) -> None:
    run.record_control(WISH)  # somebody else's, of before
    job = threading.Thread(target=answer_next, args=(run,), kwargs={"refused": refused})
    job.start()
    answer = ask(run.layout, WISH, 10.0)
    job.join()
    assert (answer.actor, answer.action, answer.detail) == ("ada", "scale", "3")
    assert answer.refused == refused
    assert list(run.layout.requests.iterdir()) == []


def test_a_request_that_nobody_answers_is_taken_back(run: RunDirectory) -> None:
    with pytest.raises(DeadlineError, match=r"did not answer within 0\.2 s"):
        ask(run.layout, WISH, 0.2)
    assert list(run.layout.requests.iterdir()) == []


def test_a_run_that_cannot_be_written_to_is_one_error(run: RunDirectory) -> None:
    run.layout.requests.touch()
    with pytest.raises(StoreError, match=r"could not make the folder .*requests: File exists"):
        ask(run.layout, WISH, 0.2)


def test_without_a_job_there_is_nobody_to_ask(run: RunDirectory) -> None:
    assert is_written(run.layout)
    run.close()
    assert not is_written(run.layout)
    with pytest.raises(MissingError, match=r"a job at work on .*, found none"):
        ask(run.layout, WISH, 5.0)
    assert not is_written(RunLayout(run.path / "nowhere"))
    RunDirectory.open(run.path)  # asking left no lock behind


def test_requests_come_in_order_and_other_files_are_none(run: RunDirectory) -> None:
    folder = run.layout.requests
    folder.mkdir()
    contents = {
        "2": WISH.model_dump_json(),
        "1": WISH.model_copy(update={"detail": "1"}).model_dump_json(),
        "3": "{}",
        "4": "not JSON",
        "5": "[" * 100_000,
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(content)
    (folder / ".6.json.new").write_text("being written")
    (folder / "7.json").mkdir()
    found = [(name, request and request.detail) for name, request in take_requests(run.layout)]
    assert found == [("1", "1"), ("2", "3"), ("3", None), ("4", None), ("5", None)]
    assert sorted(path.name for path in folder.iterdir()) == [".6.json.new", "7.json"]
