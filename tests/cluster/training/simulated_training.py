"""Training on fake workers: a scripted policy of known success, and the real trainer."""

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from cluster.config.run_config import RunConfig, to_toml
from cluster.scheduling.rollouts import Rollouts
from cluster.scheduling.rounds import Rounds
from cluster.scheduling.task_stream import TaskStream
from cluster.training.job import Job, table_of
from cluster.training.train import step_row
from envs.tools import AnswerStatus
from learner.trainer import Trainer
from learner.trainer_setup import TrainerSetup
from rollout.config import ModelConfig
from rollout.engine import VersionSpan
from rollout.episode import CallRecord, Episode, Phase, Turn
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from tests.learner.bigram_backend import VOCABULARY, BigramBackend


def config_of(path: Path, *, deterministic: bool = False, **rollouts: int) -> RunConfig:
    section = {"groups_per_step": 4, "group_size": 4, "max_staleness": 1, "max_refills": 4}
    return RunConfig.model_validate(
        {
            "run": {"dir": str(path), "name": "unit", "steps": 9, "deterministic": deterministic},
            "rollouts": section | rollouts,
        }
    )


def scripted(success: float, play: Any, malformed_share: float) -> Any:
    """Return a policy that is right with chance `success`, tries up to three calls, of which some
    are the same, and is malformed now and then.
    """

    def episode(lease: Any, task: Any, version: int, worker: str) -> Episode:
        dice = Random(lease.seed)
        right = dice.random() < success
        calls = [dice.randrange(3) for _ in range(dice.randrange(4))]
        malformed = dice.random() < malformed_share
        played: Episode = play(lease, task, version, worker)
        half = dice.randrange(2, 5)
        # The first half of the tokens may be of the version before.
        older = max(0, version - dice.randrange(2))
        return replace(
            played,
            reward=float(right) - 0.1 * malformed,
            reward_parts={"answer": float(right), "malformed": -0.1 * malformed},
            token_ids_T=tuple(dice.randrange(VOCABULARY) for _ in range(2 * half + 1)),
            phases_T=(Phase.PROMPT, *(Phase.TRIAL,) * half, *(Phase.EXECUTION,) * half),
            logprobs_T=(math.nan, *(-4 * dice.random() for _ in range(2 * half))),
            spans=(VersionSpan(1, older), VersionSpan(1 + half, version)),
            turns=(turn_of(calls),),
        )

    return episode


def turn_of(calls: list[int]) -> Turn:
    made = tuple(
        CallRecord(
            name="probe",
            arguments=json.dumps({"x": x}),
            status=AnswerStatus.OK,
            result="",
            seconds=0.0,
            cpu_seconds=0.0,
            purpose="trial",
        )
        for x in calls
    )
    return Turn(
        phase=Phase.TRIAL,
        start=1,
        end=2,
        text="",
        finish_reason="stop",
        policy_error="",
        calls=made,
    )


@dataclass
class Training:
    """A run of steps on fake workers with a real trainer."""

    config: RunConfig
    fleet: Any
    numbered: Any
    manifest_of: Callable[[int], Any]

    async def steps(self, run: RunDirectory, first: int, last: int, *, upto: str = "") -> None:
        """Make the steps `first` to `last`. With `upto` "collect", the last one is left while it
        collects, when three of its groups have been dropped.
        """
        pool = self.fleet.pool()
        pool.resize(2)
        await pool.wait_healthy(2)
        if first > 1:  # as `Job.start` does
            await pool.load_weights(self.manifest_of(first - 1))
        source = Rounds if self.config.run.deterministic else Rollouts
        rollouts = source(pool, TaskStream(self.numbered, "train", 0), run, self.config)
        learner: Any = SimpleNamespace()
        job = Job(self.config, run, pool, rollouts, learner, None)
        trainer = self.trainer()
        rollouts.start(first - 1)
        for step in range(first, last + 1):
            if upto == "collect" and step == last:
                collecting = asyncio.create_task(rollouts.collect(10**6))
                while dropped_for(run, step) < 3:
                    await asyncio.sleep(0)
                collecting.cancel()
                await asyncio.gather(collecting, return_exceptions=True)
                break
            groups = await rollouts.collect(self.config.rollouts.groups_per_step)
            report = trainer.rl_step(table_of(groups))
            await job.record_step(step, groups, report)
            run.record_metrics(step, await step_row(job, step, groups, report))
            await rollouts.push_weights(self.manifest_of(step))
        await rollouts.close()
        await pool.close()

    def trainer(self) -> Trainer:
        folder = self.config.path.parent
        (folder / "config.json").write_text(json.dumps({"vocab_size": VOCABULARY}))
        setup = TrainerSetup(
            rank=0,
            world_size=1,
            master_addr="",
            master_port=0,
            model_path=str(folder),
            model=ModelConfig(path=str(folder), max_model_len=40),
            learner=self.config.learner,
        )
        return Trainer(setup, BigramBackend)


def dropped_for(run: RunDirectory, step: int) -> int:
    entries = run.ledger.entries.values()
    return len({entry.lease.group for entry in entries if entry.collected_for == step})


def new_run(config: RunConfig) -> RunDirectory:
    info = RunInfo(run="unit", seed=0, created_at=0.0)
    return RunDirectory.create(config.path, to_toml(config), info)
