"""What a job does with requests, and what it writes down."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.progress import Progress
from cluster.training import control
from cluster.training.control import MAX_WORKERS, Controls, controlled
from rollout.store.control import ControlEvent, ask
from rollout.store.journal import read_objects
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo


@dataclass
class Pool:
    sizes: list[int] = field(default_factory=lambda: [2])

    @property
    def desired(self) -> int:
        return self.sizes[-1]

    def resize(self, desired: int) -> None:
        self.sizes.append(desired)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.create(tmp_path / "run", "", RunInfo(run="r", seed=0, created_at=0.0)) as run:
        run.layout.requests.mkdir()
        yield run


def put(run: RunDirectory, name: str, action: str, detail: str) -> None:
    wish = ControlEvent(at=1.0, actor="ada", action=action, detail=detail)
    (run.layout.requests / f"{name}.json").write_text(wish.model_dump_json())


def test_requests_are_done_in_order_and_written_down(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    put(run, "2", "scale", "1")
    put(run, "1", "scale", "5")
    pool = Pool()
    Controls(run, pool, lambda: 2).answer(Progress())
    assert pool.sizes == [2, 5, 1]
    rows = read_objects(run.layout.control)
    assert [(row["request"], row["actor"], row["detail"], row["refused"]) for row in rows] == [
        ("1", "ada", "5", ""),
        ("2", "ada", "1", ""),
    ]
    assert list(run.layout.requests.iterdir()) == []
    assert [row["note"] for row in rows] == [
        "the cluster has room for 2 of 3 more; the others wait for room",
        "",
    ]
    told = " ".join(capsys.readouterr().err.split())
    assert "request of ada: scale 5 (the cluster has room for 2 of 3 more;" in told
    assert "request of ada: scale 1 (done)" in told


@pytest.mark.parametrize(
    ("action", "detail", "reason"),
    [
        ("scale", "0", "expected 1 to 4096 workers, found 0"),
        ("scale", str(MAX_WORKERS + 1), "expected 1 to 4096 workers, found 4097"),
        ("scale", "9" * 5_000, "expected 1 to 4096 workers, found 9999"),
        ("scale", "many", "expected a number of workers, found 'many'"),
        ("scale", "-1", "expected a number of workers, found '-1'"),
        ("scale", "\u0663", "expected a number of workers"),
        ("scale", "", "expected a number of workers, found ''"),
        ("explode", "1", "expected scale, found 'explode'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    run: RunDirectory, action: str, detail: str, reason: str
) -> None:
    put(run, "1", action, detail)
    (run.layout.requests / "2.json").write_text("[[")
    pool = Pool()
    Controls(run, pool, lambda: 9).answer(Progress(quiet=True))
    assert pool.sizes == [2]
    refused = [str(row["refused"]) for row in read_objects(run.layout.control)]
    assert reason in refused[0]
    assert refused[1] == "expected a request, found another file"
    assert list(run.layout.requests.iterdir()) == []


async def test_a_job_answers_while_the_block_lasts(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_POLL_S", 0.01)
    pool = Pool()
    wish = ControlEvent(at=1.0, actor="ada", action="scale", detail="7")
    async with controlled(Controls(run, pool, lambda: 9), Progress(quiet=True)):
        answer = await asyncio.to_thread(ask, run.layout, wish, 10.0)
    assert (answer.refused, pool.desired) == ("", 7)


async def test_a_request_that_cannot_be_done_ends_nothing(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control, "_POLL_S", 0.01)
    rooms = iter([9])

    def room() -> int:
        return next(rooms, 0) or int("no cluster")

    pool = Pool()
    put(run, "1", "scale", "3")
    put(run, "2", "scale", "4")
    async with controlled(Controls(run, pool, room), Progress(quiet=True)):
        while "no cluster" not in caplog.text:
            await asyncio.sleep(0.01)
        rooms = iter([9])
        put(run, "3", "scale", "5")
        while pool.desired != 5:
            await asyncio.sleep(0.01)
    assert pool.sizes == [2, 3, 5]
