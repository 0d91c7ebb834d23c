"""The whole path on the real stack: teacher, SFT, GRPO with a killed worker, evaluation, parity."""

import asyncio
import math
import os
import signal
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.config.environments import make_environment
from cluster.config.run_config import RunConfig
from cluster.evaluation.evaluate import evaluate
from cluster.lifecycle.opening import Resume, new_run, open_run
from cluster.progress import QUIET
from cluster.scheduling.task_sources import eval_tasks
from cluster.training.job import Job
from cluster.training.train import train_steps
from envs.seeds import stable_hash
from rollout.episode import Episode, Lease, RolloutKind
from rollout.episode_schema import from_batch
from rollout.evaluation.summary import EvalSummary
from rollout.store.ledger_state import State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind
from rollout.store.run_reader import RunReader
from tests.e2e.conftest import Lessons, SharedPool

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

STEPS = 4


@dataclass(frozen=True, slots=True)
class Played:
    """What one run of the whole path left behind."""

    config: RunConfig
    greedy: dict[str, list[Episode]]
    """By worker, after the last push."""
    summaries: dict[str, EvalSummary]
    survivors: list[int]
    """Processes of the killed worker that were still there at the end."""
    losses: int


@pytest.fixture(scope="module")
def played(lessons: Lessons, shared_pool: SharedPool) -> Played:
    config = lessons.config(
        "loop",
        f"run.steps={STEPS}",
        "run.checkpoint_every=2",
        "run.deterministic=false",
        "rollouts.max_staleness=0",
        "rollouts.max_refills=2",
        "eval.tasks=8",
    )
    with open_run(RunKind.TRAIN, config.path, config, Resume.NO, QUIET) as run:
        return shared_pool.run(play(shared_pool, config, run))


async def play(shared_pool: SharedPool, config: RunConfig, run: RunDirectory) -> Played:
    async with shared_pool.job(config, run, workers=2) as job:
        running = asyncio.create_task(train_steps(job, QUIET))
        victims = await kill_a_worker(job)
        await running
        await job.learner.export_model(config.path / "model")
        await job.pool.wait_healthy(2)
        summaries = {name: await measure(config, job, name) for name in ("trial", "direct")}
        greedy = {
            worker.name: await play_greedy(config, worker.client) for worker in job.pool.workers
        }
        losses = job.pool.losses
    survivors = [
        pid
        for pid in victims
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"
    ]
    return Played(config, greedy, summaries, survivors, losses)


async def kill_a_worker(job: Job) -> list[int]:
    """SIGKILL the first worker's process while it plays; returns that process and its children."""
    while job.run.ledger.last_step < 1 or not job.pool.workers[0].running:
        await asyncio.sleep(0.01)
    client: Any = job.pool.workers[0].client
    victims = [
        client.pid,
        *(child.pid for child in psutil.Process(client.pid).children(recursive=True)),
    ]
    os.kill(client.pid, signal.SIGKILL)
    return victims


async def measure(config: RunConfig, job: Job, mode: str) -> EvalSummary:
    episode = config.episode.model_copy(update={"mode": mode})
    setting = config.model_copy(update={"episode": episode})
    with new_run(config.path.parent / f"eval-{mode}", setting, RunKind.EVAL) as run:
        tasks = eval_tasks(setting, make_environment(setting.env))
        return await evaluate(setting, job.pool, run, tasks)


async def play_greedy(config: RunConfig, client: Any) -> list[Episode]:
    tasks = make_environment(config.env).tasks("validation", 5, 4)
    episode = config.episode.model_copy(update={"temperature": 0.0})
    leases = [
        Lease(
            run="parity",
            episode=f"p{i}",
            kind=RolloutKind.TRAIN,
            group=f"p{i}",
            group_number=0,
            task=task.id,
            sample_index=0,
            attempt=0,
            seed=stable_hash(i),
        )
        for i, task in enumerate(tasks)
    ]
    batches = await asyncio.gather(
        *(
            client.run_episode(lease, task, episode)
            for lease, task in zip(leases, tasks, strict=True)
        )
    )
    return [from_batch(batch)[0] for batch in batches]


def test_every_step_trained_full_groups_on_policy(played: Played) -> None:
    rows = RunReader(played.config.path).metrics()
    assert [row.step for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row.values["episodes"] == 16
        assert row.values["staleness_max"] == 0
        assert row.values["abs_dlogp_max"] < 1e-3, "trainer and sampler agree on unchanged weights"
        assert abs(row.values["mismatch"]) < 1e-6
    assert any(row.values["grad_norm"] > 0 for row in rows), "something was learnt from"


def test_a_killed_worker_costs_no_episode(played: Played) -> None:
    state = RunReader(played.config.path).ledger()
    audit = state.audit()
    assert played.losses >= 1
    assert audit.re_leases >= 1
    assert audit.violations == ()
    assert audit.states[State.LEASED] == audit.states[State.FINISHED] == 0
    trained = [entry for entry in state.entries.values() if entry.state is State.TRAINED]
    assert all(1 <= (entry.step or 0) <= STEPS for entry in trained)
    stored = {row.episode for row in RunReader(played.config.path).episodes()}
    assert {entry.lease.episode for entry in trained} <= stored
    assert played.survivors == [], "the engine and the tool server die with their worker"


def test_after_the_push_every_worker_samples_what_the_trainer_has(played: Played) -> None:
    model = AutoModelForCausalLM.from_pretrained(played.config.path / "model", dtype=torch.float32)
    assert len(played.greedy) == 2
    for episodes in played.greedy.values():
        for episode in episodes:
            ids = torch.tensor([episode.token_ids_T])
            with torch.no_grad():
                best_T = model(ids).logits[0].argmax(-1)
            for turn in episode.turns:
                assert (
                    tuple(best_T[turn.start - 1 : turn.end - 1].tolist())
                    == episode.token_ids_T[turn.start : turn.end]
                )
            assert {span.version for span in episode.spans} == {STEPS}


def test_weights_moved(played: Played) -> None:
    before = AutoModelForCausalLM.from_pretrained(played.config.model.path)
    after = AutoModelForCausalLM.from_pretrained(played.config.path / "model")
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)


def test_both_modes_evaluate_to_typed_outcomes_that_can_be_read_back(played: Played) -> None:
    for mode, summary in played.summaries.items():
        assert (summary.tasks, summary.episodes) == (8, 8)
        assert sum(summary.outcomes.values()) == 8
        assert set(summary.outcomes) <= {"answered", "truncated", "policy_error"}
        assert (summary.trial_calls_per_episode == 0) == (mode == "direct")
        reader = RunReader(played.config.path.parent / f"eval-{mode}")
        for row in reader.episodes():
            episode = reader.episode(row.episode)
            assert episode.mode == mode
            assert all(
                not math.isnan(lp)
                for lp, own in zip(episode.logprobs_T, episode.loss_mask_T, strict=True)
                if own
            )
            if episode.calls:  # a session is opened for the first call
                assert episode.isolation.split("/")[0] in ("namespaces", "landlock", "seccomp")
