"""A real training run, mirrored on a real S3 server, goes on after its directory was lost."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig
from cluster.lifecycle.mirror_process import read_state
from cluster.lifecycle.opening import Resume, open_run
from cluster.lifecycle.retention import newest_checkpoint
from cluster.progress import QUIET
from cluster.training.train import train_steps
from rollout.store.ledger_state import State
from rollout.store.run_layout import RunKind, RunLayout
from rollout.store.run_reader import RunReader
from tests.cluster.mirror.s3_server import BUCKET, KEYS, S3Server, open_server
from tests.e2e.conftest import Lessons, SharedPool

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def server(interop_bin: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with open_server(interop_bin.parent / "storage" / "bin" / "moto_server") as started:
        yield started


def train(shared_pool: SharedPool, config: RunConfig, resume: Resume) -> None:
    async def steps() -> None:
        async with shared_pool.job(config, run, workers=1) as job:
            await train_steps(job, QUIET)

    with open_run(RunKind.TRAIN, config.path, config, resume, QUIET) as run:
        shared_pool.run(steps())


def test_training_goes_on_from_the_mirror_after_the_directory_was_lost(
    lessons: Lessons, shared_pool: SharedPool, server: S3Server
) -> None:
    def config(cluster: str, steps: int) -> RunConfig:
        return lessons.config(
            "mirrored",
            f"run.dir={lessons.folder / cluster}",
            f"run.steps={steps}",
            "run.checkpoint_every=1",
            f"mirror.url=s3://{BUCKET}/e2e",
            f"mirror.endpoint={server.endpoint}",
            "mirror.interval_s=0.5",
            "rollouts.groups_per_step=2",
        )

    first, second = config("one", 1), config("two", 2)
    train(shared_pool, first, Resume.NO)
    state = read_state(RunLayout(first.path))
    assert state is not None and state.state == "up to date", state
    before = {row.episode for row in RunReader(first.path).episodes()}
    weights = _bytes_of(first.path)
    shutil.rmtree(first.path)

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(os.sep)
        train(shared_pool, second, Resume.REQUIRED)
    reader = RunReader(second.path)
    assert [row.step for row in reader.metrics()] == [1, 2]
    assert before <= {row.episode for row in reader.episodes()}
    ledger = reader.ledger()
    assert ledger.audit().violations == ()
    trained = [entry.step for entry in ledger.entries.values() if entry.state is State.TRAINED]
    assert {step: trained.count(step) for step in trained} == {1: 8, 2: 8}
    kept = newest_checkpoint(reader.layout.checkpoints)
    assert kept is not None and kept.name == "000002"
    assert weights.items() <= _bytes_of(second.path).items(), "the restored checkpoint is the same"


def _bytes_of(run: Path) -> dict[str, bytes]:
    """Return every file of the checkpoint of step 1, which retention has not removed yet."""
    folder = RunLayout(run).checkpoints / "000001"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
