"""SIGKILL of the learner while a job trains: it starts anew, and the vLLM workers stay."""

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster.config.run_config import RunConfig
from cluster.fleet.pool import RolloutPool, WorkerState
from cluster.lifecycle.inputs import RunInputs
from cluster.lifecycle.opening import Resume, open_run
from cluster.lifecycle.retention import whole_checkpoints
from cluster.progress import Progress
from cluster.training.train import train_on
from rollout.store.ledger_state import State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind
from rollout.store.run_reader import RunReader
from tests.e2e.conftest import Lessons, SharedPool

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(600)]

STEPS = 3


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run with a killed learner left behind."""

    config: RunConfig
    killed: bool
    engines: tuple[list[str], list[str]]
    """Workers before the kill and at the end."""
    said: str


def learners() -> list[psutil.Process]:
    """Return the processes of learner ranks: Ray names a process by the method that it runs."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "LearnerActor" in " ".join(child.cmdline())]


async def kill_after_a_step(run: RunDirectory) -> None:
    async with asyncio.timeout(240):
        while not whole_checkpoints(run.layout.checkpoints) or not learners():
            await asyncio.sleep(0.1)
    for process in learners():
        os.kill(process.pid, signal.SIGKILL)


def healthy(pool: RolloutPool) -> list[str]:
    """Return the names of healthy workers; one that an earlier test dismissed may still drain."""
    return [worker.name for worker in pool.workers if worker.state is WorkerState.HEALTHY]


async def train_with_a_kill(
    inputs: RunInputs, run: RunDirectory, shared_pool: SharedPool
) -> tuple[bool, list[str], list[str]]:
    pool = shared_pool.pool
    pool.resize(1)
    await pool.wait_healthy(1)
    before = healthy(pool)
    training = asyncio.create_task(train_on(pool, inputs, run, Progress()))
    killing = asyncio.create_task(kill_after_a_step(run))
    try:
        await training
        return killing.done(), before, healthy(pool)
    finally:
        killing.cancel()
        training.cancel()
        await asyncio.gather(training, killing, return_exceptions=True)


@pytest.fixture(scope="module")
def trained(lessons: Lessons, shared_pool: SharedPool) -> Trained:
    sizes = ("rollouts.workers=1", "rollouts.groups_per_step=2", "rollouts.max_refills=1")
    run = (f"run.steps={STEPS}", "run.deterministic=false", "run.checkpoint_every=1")
    config = lessons.config("lost", *run, *sizes)
    inputs = shared_pool.inputs(config)
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(Progress, "say", lambda _, text: said.append(text))
        with open_run(RunKind.TRAIN, config.path, config, Resume.NO, Progress(quiet=True)) as run:
            killed, before, after = shared_pool.run(train_with_a_kill(inputs, run, shared_pool))
    return Trained(config, killed, (before, after), "\n".join(said))


def test_the_run_ends_with_its_steps_and_says_what_happened(trained: Trained) -> None:
    assert trained.killed
    assert "warning: the learner was lost" in trained.said
    assert [row.step for row in RunReader(trained.config.path).metrics()] == [1, 2, 3]
    assert (Path(trained.config.path) / "model" / "model.safetensors").exists()


def test_the_workers_went_on(trained: Trained) -> None:
    before, after = trained.engines
    assert before == after


def test_every_group_was_trained_once(trained: Trained) -> None:
    state = RunReader(trained.config.path).ledger()
    audit = state.audit()
    assert audit.violations == ()
    assert audit.states[State.LEASED] == audit.states[State.FINISHED] == 0
