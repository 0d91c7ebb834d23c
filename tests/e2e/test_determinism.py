"""Two runs with the same seed and different workers give the same bits; replay of one step."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import RunConfig
from cluster.lifecycle.opening import Resume, open_run
from cluster.progress import QUIET
from cluster.replay.replay_step import TIMINGS, StepReplay, replay_step
from cluster.training.train import train_steps
from rollout.episode import Episode, Timings
from rollout.store.ledger_state import State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind
from rollout.store.run_reader import RunReader
from tests.e2e.conftest import Lessons, SharedPool

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(900)]

STEPS = 2
"""The first step is on policy, the second learns from episodes of the model before it."""
OF_THE_LOOP = {
    *("collect_s", "learn_s", "push_s", "step_s", "sampled_tokens_per_s"),
    *("workers", "worker_losses", "loop_lag_p50_s", "loop_lag_p99_s", "loop_lag_max_s"),
    "stalled_s",
}


@pytest.fixture(scope="module")
def runs(lessons: Lessons, shared_pool: SharedPool) -> tuple[Path, Path]:
    """One run on two workers, and before it the same on one worker, whose batches are others."""

    async def run_on(workers: int, config: RunConfig) -> None:
        with open_run(RunKind.TRAIN, config.path, config, Resume.NO, QUIET) as run:
            async with shared_pool.job(config, run, workers) as job:
                await train_steps(job, QUIET)
                await job.learner.export_model(run.layout.model)

    shared = (f"run.steps={STEPS}", "run.checkpoint_every=1", "rollouts.max_refills=2")
    one = lessons.config("one", *shared)
    other = lessons.config("other", *shared, "rollouts.workers=1")
    shared_pool.run(run_on(1, other))
    shared_pool.run(run_on(2, one))
    return one.path, other.path


@pytest.fixture(scope="module")
def replayed(runs: tuple[Path, Path]) -> StepReplay:
    return asyncio.run(replay_step(runs[0], STEPS, QUIET))


def comparable(episode: Episode) -> Episode:
    """Remove times and names of workers; NaN, which equals nothing, becomes 1."""
    turns = tuple(
        replace(
            turn,
            calls=tuple(replace(call, seconds=0.0, cpu_seconds=0.0) for call in turn.calls),
        )
        for turn in episode.turns
    )
    return replace(
        episode,
        lease=replace(episode.lease, run=""),
        turns=turns,
        logprobs_T=tuple(1.0 if math.isnan(lp) else lp for lp in episode.logprobs_T),
        timings=Timings(started_at=0, wall_s=0, queue_s=0, generate_s=0, tool_s=0),
        worker="",
        tool_server="",
    )


def played(run: Path) -> dict[str, Episode]:
    reader = RunReader(run)
    return {row.episode: comparable(reader.episode(row.episode)) for row in reader.episodes()}


def learnt(run: Path) -> list[Mapping[str, float]]:
    left_out = TIMINGS | OF_THE_LOOP
    return [
        {name: value for name, value in row.values.items() if name not in left_out}
        for row in RunReader(run).metrics()
    ]


def states(run: Path) -> dict[str, tuple[State, int | None, Any]]:
    entries = RunReader(run).ledger().entries
    return {name: (entry.state, entry.step, entry.reason) for name, entry in entries.items()}


def test_the_same_seed_gives_the_same_bits(runs: tuple[Path, Path]) -> None:
    one, other = runs
    workers = [{RunReader(run).episode(e).worker for e in played(run)} for run in runs]
    assert [len(names) for names in workers] == [2, 1]
    assert played(one) == played(other)
    assert states(one) == states(other)
    assert learnt(one) == learnt(other)
    assert (one / "model" / "model.safetensors").read_bytes() == (
        other / "model" / "model.safetensors"
    ).read_bytes()


def test_something_was_learnt_asynchronously(runs: tuple[Path, Path]) -> None:
    rows = RunReader(runs[0]).metrics()
    assert [row.values["staleness_max"] for row in rows] == [0, 1]
    assert all(row.values["grad_norm"] > 0 for row in rows)
    assert len({row.values["weights_digest"] for row in rows}) == STEPS
    assert len({row.values["pushed_weights_digest"] for row in rows}) == STEPS
    assert max(row.values["abs_dlogp_max"] for row in rows[:1]) < 1e-3


def test_a_step_run_again_from_its_checkpoint_ends_in_the_same_weights(
    replayed: StepReplay,
) -> None:
    assert (replayed.step, replayed.base, replayed.steps) == (STEPS, "checkpoint 000001", 1)
    assert replayed.differences == ()
    assert replayed.to_json()["verdict"] == "equal, bit for bit"
    assert replayed.weights == "every tensor of the whole model, and the pushed weights together"


def test_a_step_without_whole_digests_is_compared_by_what_was_pushed(
    runs: tuple[Path, Path],
) -> None:
    """As the steps between checkpoints of a run that is not deterministic."""
    whole = RunReader(runs[1]).annotations(1)
    with RunDirectory.open(runs[1]) as run:
        run.annotate(1, whole.replace_schema_metadata(None))
    try:
        found = asyncio.run(replay_step(runs[1], 1, QUIET))
    finally:
        with RunDirectory.open(runs[1]) as run:
            run.annotate(1, whole)
    assert found.differences == ()
    assert found.weights == "the pushed weights together, by one hash"


def test_a_step_is_another_with_another_rate(runs: tuple[Path, Path]) -> None:
    """The replay of a run whose recipe was edited after the run."""
    path = runs[1] / "config.toml"
    config = path.read_text()
    assert "lr = 0.0003" in config
    path.write_text(config.replace("lr = 0.0003", "lr = 0.0004"))
    try:
        found = asyncio.run(replay_step(runs[1], 1, QUIET))
    finally:
        path.write_text(config)
    assert found.base == "the initial model"
    kinds = [difference.where.split()[0] for difference in found.differences]
    assert kinds == ["weights", "metric"]
