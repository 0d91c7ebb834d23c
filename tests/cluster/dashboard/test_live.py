"""Server-sent events of a run that is written while it is looked at, and steering it."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn

from cluster.dashboard.api.live import read_id, write_id
from cluster.dashboard.app import create_app
from cluster.fleet.free_slots import FreeSlots
from cluster.fleet.pool_worker import Worker, WorkerClient
from cluster.progress import Progress
from cluster.training.control import Controls
from cluster.training.requested_checkpoints import RequestedCheckpoints
from rollout.store.run_directory import RunDirectory
from tests.cluster.dashboard.conftest import HOST, OPERATOR, settings_for
from tests.cluster.dashboard.sample_run import GROUP, metrics_of, write_group, write_sample_run


@asynccontextmanager
async def served(root: Path, cache: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Serve on a real socket: a test transport collects a stream to its end."""
    settings = settings_for(root, cache)
    config = uvicorn.Config(create_app(settings), port=0, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    headers = {"authorization": f"Bearer {OPERATOR}", "host": HOST}
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}/api/v1", headers=headers, timeout=30.0
        ) as client:
            yield client
    finally:
        server.should_exit = True
        await task


async def events_of(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, str, Any]]:
    """Yield (id, type, data) of each event."""
    found: dict[str, str] = {}
    async for line in lines:
        if not line and "data" in found:
            yield found.get("id", ""), found.get("event", ""), json.loads(found["data"])
            found = {}
        elif line:
            name, _, value = line.partition(": ")
            found[name] = value


async def _until(
    events: AsyncIterator[tuple[str, str, Any]], true: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Return the first event `run` for which `true` holds, with its id."""
    async for event, kind, data in events:
        if kind == "run" and true(data):
            return {**data, "id": event}
    raise AssertionError("the stream ended")


def _added(most: int) -> Callable[[dict[str, Any]], bool]:
    """Return what says that `most` new episodes were announced, in however many events.

    A group is stored episode by episode, and may be read in between.
    """
    new = 0

    def whole(seen: dict[str, Any]) -> bool:
        nonlocal new
        new += seen["new_episodes"]
        assert new <= most
        return new == most

    return whole


async def test_what_is_stored_is_announced_and_a_reconnection_misses_nothing(
    tmp_path: Path,
) -> None:
    run = write_sample_run(tmp_path / "runs" / "sample", close=False)
    async with served(tmp_path / "runs", tmp_path / "cache") as client:
        (row,) = (await client.get("/runs")).json()["runs"]
        assert row["state"] == "running"
        address = {"run": row["id"]}
        async with client.stream("GET", "/live", params=address) as stream:
            events = events_of(stream.aiter_lines())
            assert (await anext(events))[1] == "ready"
            before = await _until(events, lambda seen: seen["coverage"]["complete"])
            write_group(run, 7)
            run.record_metrics(3, metrics_of(3, 0.75))
            steps: list[int] = []
            group = _added(GROUP)

            def both(seen: dict[str, Any]) -> bool:
                steps.extend(step["step"] for step in seen["metrics"])
                return group(seen) and bool(steps)

            after = await _until(events, both)
            assert after["episodes"] == before["episodes"] + GROUP
            assert after["running"]
            assert steps == [3]
            last = after["id"]
        write_group(run, 8)
        again = {"last-event-id": last}
        async with client.stream("GET", "/live", params=address, headers=again) as stream:
            events = events_of(stream.aiter_lines())
            await anext(events)
            missed = await _until(events, _added(GROUP))
            assert missed["episodes"] == after["episodes"] + GROUP
        run.close()


def test_an_id_that_is_not_ours_is_no_error() -> None:
    seen = {"a": [1, 2, 3, 4, 5, 6, 7]}
    assert read_id(write_id(seen)) == seen
    for text in ("", "x", "e30", "W10=", "bnVsbA==", "\u2028"):
        assert read_id(text) == {}


@pytest.mark.parametrize(
    ("request_body", "accepted"),
    [({"kind": "scale", "workers": 5}, True), ({"kind": "scale_by", "change": -9}, False)],
)
async def test_a_job_is_steered_and_the_audit_names_who_asked(
    tmp_path: Path, request_body: dict[str, Any], accepted: bool
) -> None:
    run = write_sample_run(tmp_path / "runs" / "sample", close=False)
    pool = _Pool()
    done = threading.Event()
    job = threading.Thread(target=_answer, args=(run, pool, done))
    job.start()
    try:
        async with served(tmp_path / "runs", tmp_path / "cache") as client:
            (row,) = (await client.get("/runs")).json()["runs"]
            address = f"/runs/{row['id']}"
            seen = (await client.post(f"{address}/steer/preview", json=request_body)).json()
            assert seen["allowed"] is accepted
            found = (await client.post(f"{address}/steer", json=request_body)).json()
            assert found["accepted"] is accepted
            assert pool.desired == (5 if accepted else 2)
            newest = (await client.get(f"{address}/audit")).json()["entries"][0]
            assert newest["actor"] == "tester (dashboard)"
            assert bool(newest["refused"]) is not accepted
    finally:
        done.set()
        job.join()
        run.close()


async def test_a_pause_is_seen_before_it_is_sent_while_it_lasts_and_in_the_audit(
    tmp_path: Path,
) -> None:
    run = write_sample_run(tmp_path / "runs" / "sample", close=False)
    pool = _Pool()
    pool.workers.append(Worker("worker-1", cast(WorkerClient, None), running=1))
    done = threading.Event()
    job = threading.Thread(target=_answer, args=(run, pool, done))
    job.start()
    try:
        async with served(tmp_path / "runs", tmp_path / "cache") as client:
            (row,) = (await client.get("/runs")).json()["runs"]
            address = f"/runs/{row['id']}"

            async def ask(kind: str) -> tuple[str, str]:
                body = {"kind": kind}
                seen = (await client.post(f"{address}/steer/preview", json=body)).json()
                assert seen["allowed"], seen
                found = (await client.post(f"{address}/steer", json=body)).json()
                assert found["accepted"], found
                return seen["sentence"], found["note"]

            async def paused() -> bool:
                return (await client.get(address)).json()["paused"]

            assert not await paused() and (await ask("resume"))[0].startswith("Nothing changes")
            seen, note = await ask("pause")
            assert seen.startswith("No episode and no group starts")
            assert note == "no episode starts; 1 that run are finished first"
            assert await paused() and pool.places.paused
            assert (await ask("pause"))[0] == "Nothing changes: the job is paused."
            pool.workers[0].running = 0
            async with asyncio.timeout(10):
                while True:
                    entries = (await client.get(f"{address}/audit")).json()["entries"]
                    if any(one["completed"] for one in entries):
                        break
            assert entries[0]["note"] == "every episode has ended, and none starts"
            assert entries[0]["actor"] == "tester (dashboard)"
            assert await ask("resume") == ("Episodes start again.", "episodes start again")
            assert not await paused()
            seen, note = await ask("checkpoint")
            assert "between two steps" in seen and note.startswith("the checkpoint of step")
    finally:
        done.set()
        job.join()
        run.close()


class _Pool:
    """What a job resizes: one group of workers."""

    def __init__(self) -> None:
        self.desired = 2
        self.workers: list[Worker] = []
        self.places: FreeSlots[Worker] = FreeSlots()

    @property
    def groups(self) -> dict[str, int]:
        return {"default": self.desired}

    def resize(self, desired: int, group: str, *, abort: bool) -> None:
        del group, abort
        self.desired = desired


def _answer(run: RunDirectory, pool: _Pool, done: threading.Event) -> None:
    """Be the job: its own code answers requests."""

    async def save(step: int) -> None:
        raise AssertionError("no step ends here")

    async def work() -> None:
        checkpoints = RequestedCheckpoints(save, 0)
        controls = Controls(run, pool, lambda group: 10, checkpoints)
        while not done.is_set():
            controls.answer(Progress(quiet=True))
            await asyncio.sleep(0.05)

    asyncio.run(work())
