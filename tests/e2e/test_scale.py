"""A job at work is steered from other processes: scaled, paused, saved and stopped."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import RunConfig
from cluster.jobs.health import read_health
from cluster.lifecycle.opening import Resume, open_run
from cluster.lifecycle.retention import newest_checkpoint
from cluster.progress import QUIET
from cluster.training.train import train_steps
from rollout.store.journal import read_objects
from rollout.store.run_layout import RunKind, RunLayout
from rollout.store.run_reader import RunReader
from tests.cluster.dashboard.process import DashboardProcess
from tests.e2e.conftest import Lessons, SharedPool

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(600)]

NAME = "scaled"
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from cluster.cli.main import main; main()"]


def workers_of(run: Path) -> float:
    """Return how many workers the newest step had."""
    rows = RunReader(run).metrics()
    return rows[-1].values["workers"] if rows else 0.0


def has_played(run: Path, worker: str) -> bool:
    reader = RunReader(run)
    rows = reader.episodes()
    return bool(rows) and worker in reader.batch(rows)["worker"].to_pylist()


def state_of(run: Path) -> tuple[int, int]:
    """Return how many episodes were stored, and which step was the last."""
    reader = RunReader(run)
    rows = reader.metrics()
    return len(reader.episodes()), rows[-1].step if rows else 0


def saved_step(run: Path) -> int:
    newest = newest_checkpoint(RunLayout(run).checkpoints)
    return int(newest.name) if newest else 0


def doing(run: Path) -> str:
    health = read_health(RunLayout(run))
    return health.doing if health else ""


async def command(*words: object) -> dict[str, Any]:
    """Run `trialrun` in a process of its own, and return what it found."""
    asked = [*COMMAND, *map(str, words), "--json"]
    ended = await asyncio.to_thread(
        subprocess.run, asked, cwd=ROOT, check=True, timeout=240, stdout=subprocess.PIPE
    )
    return json.loads(ended.stdout)


async def ask(dashboard: DashboardProcess, **request: Any) -> dict[str, Any]:
    """Look at a request in a dashboard, then send it; return the job's answer."""

    def post(path: str) -> dict[str, Any]:
        (row,) = [row for row in dashboard.get("/runs")["runs"] if row["name"] == NAME]
        found = dashboard.client.post(f"/api/v1/runs/{row['id']}/{path}", json=request)
        found.raise_for_status()
        return found.json()

    seen = await asyncio.to_thread(post, "steer/preview")
    assert seen["allowed"], seen
    found = await asyncio.to_thread(post, "steer?wait_s=60")
    assert found["accepted"], found
    return found


async def steered(
    shared_pool: SharedPool, config: RunConfig, dashboard: DashboardProcess, stopped: Any
) -> None:
    path = config.path
    with open_run(RunKind.TRAIN, path, config, Resume.NO, QUIET) as run:

        async def train() -> None:
            async with shared_pool.job(config, run, workers=1) as job:
                await train_steps(job, QUIET)

        training = asyncio.create_task(train())

        async def until(holds: Callable[[], bool]) -> None:
            async with asyncio.timeout(240):
                while not holds():
                    if training.done():
                        training.result()
                    await asyncio.sleep(0.2)

        try:
            await until(lambda: workers_of(path) == 1)
            found = await command("scale", path, 2, "--wait")
            assert (found["workers"], found["note"]) == (2, "2 workers serve")
            await until(lambda: has_played(path, shared_pool.pool.workers[1].name))
            await paused_and_saved(path, dashboard, until)
            assert (await ask(dashboard, kind="scale_by", change=-1, abort=True))["workers"] == 1
            await until(lambda: workers_of(path) == 1)
            await ask(dashboard, kind="stop")
            await until(stopped)
        finally:
            shared_pool.pool.places.resume()
            training.cancel()
            await asyncio.gather(training, return_exceptions=True)


async def paused_and_saved(path: Path, dashboard: DashboardProcess, until: Any) -> None:
    """Pause the job, take a checkpoint while nothing moves, and let it go on."""
    await ask(dashboard, kind="pause")
    assert (await command("pause", path, "--wait"))["note"].startswith(
        ("no episode runs", "every episode has ended")
    )
    assert (await command("status", path))["state"] == "paused"
    await until(lambda: doing(path).startswith("is paused and waits for the groups"))
    before = state_of(path)
    assert saved_step(path) < before[1], "nothing was to be saved"
    found = await command("checkpoint", path, "--wait")
    assert saved_step(path) >= before[1] and f"{saved_step(path):06d}" in found["note"]
    assert state_of(path)[0] == before[0], "an episode ended during the pause"
    assert (await command("resume", path))["note"] == "episodes start again"
    await until(lambda: state_of(path)[1] > before[1])


@contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
    """Yield whether this process, which a request to stop would end, got SIGTERM."""
    got: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        yield lambda: bool(got)
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_job_at_work_is_scaled_paused_saved_and_stopped(
    lessons: Lessons, shared_pool: SharedPool, tmp_path: Path
) -> None:
    quick = ("rollouts.groups_per_step=1", "rollouts.group_size=2", "rollouts.max_refills=0")
    often = ("run.steps=10000", "run.checkpoint_every=10000")
    config = lessons.config(NAME, *quick, *often, "run.deterministic=false")
    dashboard = DashboardProcess(str(config.path.parent), "--cache", str(tmp_path / "cache"))
    try:
        with sigterm() as stopped:
            shared_pool.run(steered(shared_pool, config, dashboard, stopped))
    finally:
        dashboard.stop()
    user = getuser()
    control = read_objects(RunReader(config.path).layout.control)
    assert all(not row["refused"] for row in control)
    taken = [(row["actor"], row["request"]) for row in control if not row["completed"]]
    assert taken == [
        (user, {"kind": "scale", "workers": 2}),
        (f"{user} (dashboard)", {"kind": "pause"}),
        (user, {"kind": "pause"}),
        (user, {"kind": "checkpoint"}),
        (user, {"kind": "resume"}),
        (f"{user} (dashboard)", {"kind": "scale_by", "change": -1, "abort": True}),
        (f"{user} (dashboard)", {"kind": "stop"}),
    ]
    effects = [str(row["note"]) for row in control if row["completed"]]
    assert "2 workers serve" in effects and "1 worker serves" in effects
