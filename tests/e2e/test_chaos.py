"""Four faults while a job trains, each with a witness; `make chaos` runs every kind of them."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig
from cluster.lifecycle.inputs import RunInputs
from cluster.lifecycle.opening import Resume, open_run
from cluster.progress import Progress
from cluster.training.train import train_on
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind
from tests.chaos.checks import log_lines, not_stored, replay, steps_without_metrics
from tests.chaos.faults import SHORT, Fault
from tests.chaos.injector import Injector
from tests.chaos.journal import Journal
from tests.chaos.named import is_named
from tests.chaos.processes import Processes
from tests.chaos.report import print_table
from tests.chaos.scene import Scene
from tests.chaos.stage import survivors
from tests.e2e.conftest import Lessons, SharedPool

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(600)]

WORKERS, GROUPS, LAST = 2, 2, 100_000
SCHEDULE: list[Fault] = [fault for group in SHORT for fault in group]


@dataclass(frozen=True, slots=True)
class Hit:
    """What a run under fire left behind."""

    config: RunConfig
    steps: int
    journal: Journal


async def train_under_fire(
    inputs: RunInputs,
    run: RunDirectory,
    shared_pool: SharedPool,
    journal: Journal,
    progress: Progress,
) -> int:
    """Train until every fault is over; return the number of steps."""
    pool = shared_pool.pool
    pool.resize(WORKERS)
    await pool.wait_healthy(WORKERS)
    # Ray names its session after the process that started it.
    scene = Scene(pool, Processes(f"_{os.getpid()}/"), run.path, ranks=1)
    injector = Injector(scene, SCHEDULE, journal, None, LAST)
    training = asyncio.create_task(train_on(pool, inputs, run, progress))
    injector.start()
    try:
        async with asyncio.timeout(400):
            while not injector.is_done and not journal.of("failed"):
                if training.done():
                    training.result()
                await asyncio.sleep(0.1)
            await pool.wait_healthy(WORKERS)
    finally:
        await asyncio.to_thread(injector.stop)
        training.cancel()
        await asyncio.gather(training, return_exceptions=True)
    return scene.step


@pytest.fixture(scope="module")
def hit(lessons: Lessons, shared_pool: SharedPool, tmp_path_factory: pytest.TempPathFactory) -> Hit:
    sizes = (f"rollouts.groups_per_step={GROUPS}", "rollouts.max_refills=1")
    run = ("run.steps=10000", "run.deterministic=false", "run.checkpoint_every=1")
    config = lessons.config("chaos", *run, *sizes, f"rollouts.workers={WORKERS}")
    journal = Journal(tmp_path_factory.mktemp("journal") / "faults.jsonl")
    progress = Progress(quiet=True)
    with (
        open_run(RunKind.TRAIN, config.path, config, Resume.NO, progress) as opened,
        progress.logged(opened.layout.log),
    ):
        inputs = shared_pool.inputs(config)
        work = train_under_fire(inputs, opened, shared_pool, journal, progress)
        steps = shared_pool.run(work)
    print_table(SCHEDULE, journal)
    return Hit(config, steps, journal)


def test_every_fault_happened_and_was_over_in_time(hit: Hit) -> None:
    assert hit.journal.of("failed") == {}
    injected = hit.journal.of("injected")
    assert sorted(injected) == sorted(hit.journal.of("over")) == list(range(len(SCHEDULE)))
    assert all(line.saw.endswith("dead") for line in injected.values())
    assert survivors([(line.pid, line.at) for line in injected.values()]) == []


def test_every_fault_is_named_in_the_log(hit: Hit) -> None:
    lines, injected = log_lines(Path(hit.config.path)), hit.journal.of("injected")
    unnamed = [
        f"{fault.name}: {injected[number]}"
        for number, fault in enumerate(SCHEDULE)
        if not is_named(fault, injected[number], lines)
    ]
    assert not unnamed, "\n".join(unnamed)


def test_nothing_was_lost_or_trained_twice(hit: Hit) -> None:
    replayed = replay(Path(hit.config.path), GROUPS)
    assert steps_without_metrics(Path(hit.config.path), hit.steps) == set()
    assert replayed.violations(hit.steps, ended=False) == []
    assert not_stored(Path(hit.config.path), replayed) == []
