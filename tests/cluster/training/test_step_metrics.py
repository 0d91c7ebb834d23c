"""Simulated training with a scripted policy of known success: what its metrics say is true.

Real `Rollouts` and `Rounds`, the real trainer on a table of logits, and a run directory. Every
metric of every step is then computed again from what the directory holds, by plain Python.
"""

import asyncio
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.config.run_config import RunConfig, to_toml
from cluster.metrics import METRICS
from cluster.scheduling.played import PlayedGroup, played_group
from cluster.scheduling.rollouts import Rollouts
from cluster.scheduling.rounds import Rounds
from cluster.scheduling.task_stream import TaskStream
from cluster.training.job import Job, table_of
from cluster.training.step_metrics import played_metrics, staleness_metrics
from cluster.training.train import step_row
from envs.tools import AnswerStatus
from learner.trainer import Trainer
from learner.trainer_setup import TrainerSetup
from rollout.config import ModelConfig
from rollout.engine import VersionSpan
from rollout.episode import CallRecord, Episode, Lease, Outcome, Phase, RolloutKind, Turn
from rollout.episode_schema import to_batch
from rollout.store.ledger_state import DropReason, State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from rollout.store.run_reader import RunReader
from tests.learner.bigram_backend import VOCABULARY, BigramBackend

OF_THE_LEARNER = {
    *("loss", "grad_norm", "lr", "optimizer_steps", "reference_kl", "masked_fraction"),
    *("corrected_fraction", "trial_cost_charged", "trial_cost_payers", "unscored_tokens"),
    *("seconds", "sequence_tokens_per_s", "trial_advantage_size"),
}
"""Not in the stored episodes; tests/learner/test_report.py works them out."""
OF_THE_LOOP = {
    *("collect_s", "learn_s", "push_s", "step_s", "sampled_tokens_per_s"),
    *("workers", "worker_losses", "pushed_weights_digest", "weights_digest"),
    *("step", "steps", "skipped"),
}
"""Times, counters and hashes."""


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
            job.record_step(step, groups, report)
            run.record_metrics(step, step_row(job, step, groups, report))
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


@pytest.fixture
def train(fleet: Any, numbered: Any, manifest_of: Any) -> Callable[..., Training]:
    canned = fleet.play

    def make(config: RunConfig, success: float, malformed: float = 0.1) -> Training:
        fleet.play = scripted(success, canned, malformed)
        return Training(config, fleet, numbered, manifest_of)

    return make


def new_run(config: RunConfig) -> RunDirectory:
    info = RunInfo(run="unit", seed=0, created_at=0.0)
    return RunDirectory.create(config.path, to_toml(config), info)


# Computed again


@dataclass
class Stored:
    """An episode of the store, and what the ledger says about it."""

    episode: Episode
    step: int | None
    collected_for: int | None
    state: State
    reason: DropReason | None

    @property
    def calls(self) -> list[str]:
        return [call.arguments for turn in self.episode.turns for call in turn.calls]

    @property
    def sampled(self) -> int:
        return sum(phase != Phase.PROMPT for phase in self.episode.phases_T)

    @property
    def answer(self) -> float:
        return self.episode.reward_parts["answer"]


def stored_of(path: Path) -> list[Stored]:
    reader = RunReader(path)
    found = []
    for row in reader.last_attempts():
        entry = reader.ledger().entries[row.episode]
        episode = reader.episode(row.episode)
        found.append(Stored(episode, entry.step, entry.collected_for, entry.state, entry.reason))
    return found


def by_group(episodes: list[Stored]) -> list[list[Stored]]:
    names = dict.fromkeys(stored.episode.lease.group for stored in episodes)
    return [[s for s in episodes if s.episode.lease.group == name] for name in names]


def slope_within(groups: list[list[Stored]], dose_of: Callable[[Stored], float]) -> Any:
    """Return the fixed-effects slope of answers over doses, by sums over pairs of episodes."""
    top = bottom = 0.0
    varying = 0
    for group in groups:
        pairs = [(a, b) for i, a in enumerate(group) for b in group[:i]]
        weights = [(dose_of(a) - dose_of(b)) ** 2 / len(group) for a, b in pairs]
        varying += sum(weights) > 0
        bottom += sum(weights)
        top += sum((dose_of(a) - dose_of(b)) * (a.answer - b.answer) / len(group) for a, b in pairs)
    return (top / bottom if bottom else math.nan), varying


def again_over_played(episodes: list[Stored], step: int) -> dict[str, float]:
    played = [s for s in episodes if step in (s.step, s.collected_for)]
    groups = by_group(played)
    reasons = [group[0].reason for group in groups if group[0].collected_for == step]
    found: dict[str, float] = {
        "success": statistics.fmean(s.answer for s in played),
        "reward": statistics.fmean(s.episode.reward or 0.0 for s in played),
        "played_groups": len(groups),
        "played_episodes": len(played),
        "replaced_groups": reasons.count(DropReason.ZERO_VARIANCE),
        "stale_groups": reasons.count(DropReason.STALE),
        "all_right_groups": sum(all(s.answer == 1 for s in group) for group in groups),
        "all_wrong_groups": sum(all(s.answer == 0 for s in group) for group in groups),
        "trial_calls": statistics.fmean(len(s.calls) for s in played),
        "distinct_trials": statistics.fmean(len(set(s.calls)) for s in played),
        "sampled_tokens": sum(s.sampled for s in played),
    }
    doses: dict[str, Callable[[Stored], float]] = {
        "trial_yield": lambda s: float(len(set(s.calls))),
        "trial_yield_any": lambda s: float(bool(s.calls)),
    }
    for name, dose_of in doses.items():
        found[name], found[f"{name}_groups"] = slope_within(groups, dose_of)
    return found


def again_over_given(episodes: list[Stored], step: int) -> dict[str, float]:
    given = [s for s in episodes if s.step == step]
    trained = [s for s in given if s.state is State.TRAINED]
    left_out = [s.reason for s in given if s.state is State.DROPPED]
    lags = [step - 1 - min(span.version for span in s.episode.spans) for s in given]
    found: dict[str, float] = {
        "episodes": len(given),
        "trained_episodes": len(trained),
        "dropped": len(left_out),
        "trained_success": mean(s.answer for s in trained),
        "trained_reward": mean(s.episode.reward or 0.0 for s in trained),
        "sequence_tokens": sum(len(s.episode.token_ids_T) for s in trained),
        "loss_tokens": sum(s.sampled for s in trained),
        "staleness_mean": mean(lags),
        "staleness_max": max(lags),
    }
    return found | {
        f"dropped_{reason}": float(left_out.count(reason)) for reason in set(left_out) if reason
    }


def mean(values: Any) -> float:
    listed = list(values)
    return statistics.fmean(listed) if listed else math.nan


def again_over_tokens(path: Path, episodes: list[Stored], step: int) -> dict[str, float]:
    """One update a step, so each token was seen once, with the weights of the start."""
    by_name = {s.episode.lease.episode: s.episode for s in episodes}
    entropies, k3, sizes, clipped = [], {True: [], False: []}, [], []
    advantages = []
    for row in RunReader(path).annotations(step).to_pylist():
        episode = by_name[row["episode"]]
        if row["advantage"] is not None:
            advantages.append(abs(row["advantage"]))
        entropies += row["entropies"]
        for at, logprob in zip(row["loss_positions"], row["trainer_logprobs"], strict=True):
            version = [span.version for span in episode.spans if span.start <= at][-1]
            delta = logprob - episode.logprobs_T[at]
            ratio = math.exp(delta)
            k3[version == step - 1].append(ratio - 1 - delta)
            sizes.append(abs(delta))
            gain = row["advantage"] > 0
            clipped.append(ratio > 1.25 if gain else ratio < 0.8)
    return {
        "start_entropy": mean(entropies),
        "mismatch": mean(k3[True] + k3[False]),
        "mismatch_fresh": mean(k3[True]),
        "mismatch_stale": mean(k3[False]),
        "abs_dlogp_mean": mean(sizes),
        "abs_dlogp_p99": float(np.percentile(sizes, 99)) if sizes else math.nan,
        "abs_dlogp_max": max(sizes, default=math.nan),
        "clip_fraction": mean(clipped),
        "advantage_size": mean(advantages),
    }


def check_every_step(path: Path, steps: range) -> list[dict[str, float]]:
    """Compare the recorded rows of `steps` with what the directory says; return them."""
    episodes = stored_of(path)
    rows = {row.step: row.values for row in RunReader(path).metrics()}
    compared: set[str] = set()
    for step in steps:
        again = {
            **again_over_played(episodes, step),
            **again_over_given(episodes, step),
            **again_over_tokens(path, episodes, step),
        }
        compared |= again.keys()
        for name, value in again.items():
            found = rows[step].get(name, math.nan)
            assert found == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), (step, name)
    errors = {f"{name}_se" for name in ("trial_yield", "trial_yield_any")}
    reasons = {name for name in METRICS if name.startswith("dropped_")}
    assert METRICS.keys() - compared - OF_THE_LEARNER - OF_THE_LOOP - errors - reasons == set()
    return [rows[step] for step in steps]


@pytest.mark.parametrize("deterministic", [False, True])
async def test_every_metric_is_what_the_stored_episodes_say(
    tmp_path: Path, train: Any, deterministic: bool
) -> None:
    config = config_of(tmp_path, deterministic=deterministic)
    with new_run(config) as run:
        await train(config, 0.7).steps(run, 1, 4)
    rows = check_every_step(config.path, range(1, 5))
    assert sum(row["replaced_groups"] for row in rows) >= 2
    assert any("mismatch_fresh" in row for row in rows)
    assert any("mismatch_stale" in row for row in rows)


async def test_a_step_that_trains_on_nothing_is_a_row_of_what_was_measured(
    tmp_path: Path, train: Any
) -> None:
    config = config_of(tmp_path, max_refills=0)
    with new_run(config) as run:
        training = train(config, 1.0)
        training.fleet.play = always_right(training.fleet.play)
        await training.steps(run, 1, 1)
    (row,) = check_every_step(config.path, range(1, 2))
    assert (row["success"], row["all_right_groups"], row["optimizer_steps"]) == (1.0, 4, 0)
    absent = {"loss", "grad_norm", "start_entropy", "mismatch", "clip_fraction", "trained_success"}
    assert not absent & row.keys()


def always_right(play: Any) -> Any:
    return lambda *given: replace(play(*given), reward=1.0, reward_parts={"answer": 1.0})


@pytest.mark.parametrize("success", [0.2, 0.8, 0.95, 0.99])
async def test_what_is_shown_is_the_success_of_the_policy(
    tmp_path: Path, train: Any, success: float
) -> None:
    """Each share lies within three standard errors of the truth."""
    config = config_of(tmp_path, groups_per_step=8, group_size=8, max_refills=8)
    with new_run(config) as run:
        await train(config, success, malformed=0.0).steps(run, 1, 4)
    rows = [row.values for row in RunReader(config.path).metrics()]
    played = sum(row["played_episodes"] for row in rows)
    error = math.sqrt(success * (1 - success) / played)
    shown = sum(row["success"] * row["played_episodes"] for row in rows) / played
    assert abs(shown - success) < 3 * error
    assert all(row["reward"] == pytest.approx(row["success"]) for row in rows)
    groups = sum(row["played_groups"] for row in rows)
    for name, chance in (
        ("all_right_groups", success**8),
        ("all_wrong_groups", (1 - success) ** 8),
    ):
        share = sum(row[name] for row in rows) / groups
        assert abs(share - chance) < 3 * math.sqrt(chance * (1 - chance) / groups) + 1e-9, name
    trained = statistics.fmean(row["trained_success"] for row in rows if "trained_success" in row)
    assert abs(trained - 0.5) < abs(shown - 0.5), "what is trained on lies nearer to one half"
    assert sum(row["replaced_groups"] for row in rows) > 0


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("killed", "checkpoint"), [(4, 2), (4, 3), (4, 0)])
async def test_a_resume_counts_every_group_once(
    tmp_path: Path, train: Any, deterministic: bool, killed: int, checkpoint: int
) -> None:
    """Killed while step 4 collects, when it has dropped three groups; steps after the checkpoint
    are trained again, and their dropped groups are not played again.
    """
    config = config_of(tmp_path, deterministic=deterministic)
    run = new_run(config)
    training = train(config, 0.7)
    if deterministic:
        await training.steps(run, 1, killed - 1)
    else:
        await training.steps(run, 1, killed, upto="collect")
        assert dropped_for(run, killed) >= 3
    run.close()
    before = {row.step: row.values for row in RunReader(config.path).metrics()}
    with RunDirectory.open(config.path) as again:
        again.recover(checkpoint)
        await training.steps(again, checkpoint + 1, killed + 1)
    rows = check_every_step(config.path, range(1, killed + 2))
    for step in range(checkpoint + 1, killed):
        for name in ("success", "reward", "played_groups", "replaced_groups", "trial_yield"):
            assert rows[step - 1].get(name) == pytest.approx(before[step].get(name)), (step, name)
    assert all(row["replaced_groups"] <= config.rollouts.max_refills for row in rows)


# The yield of trials


def selected_step(dice: np.random.Generator, chance: Callable[[float], Any]) -> list[PlayedGroup]:
    """Return the groups of a step of 8 groups of 8 whose refills were chosen by their answers."""
    groups: list[PlayedGroup] = []
    refills = taken = 0
    while taken < 8:
        doses_G = dice.integers(0, 4, 8)
        answers_G = (dice.random(8) < chance(dice.random()) + 0.04 * doses_G).astype(float)
        flat = np.ptp(answers_G) == 0 and refills < 8
        refills, taken = refills + flat, taken + (not flat)
        groups.append(
            PlayedGroup(
                name=f"g{len(groups)}",
                reason=DropReason.ZERO_VARIANCE if flat else None,
                rewards_G=answers_G,
                answers_G=answers_G,
                trial_calls_G=doses_G,
                distinct_G=doses_G,
                sampled_tokens=0,
            )
        )
    return groups


def test_the_yield_is_that_of_all_groups_and_not_of_those_that_vary() -> None:
    """The true slope is 0.04; over the groups taken alone it looks half as much again."""
    dice = np.random.default_rng(5)
    steps = [selected_step(dice, lambda u: 0.7 + 0.18 * u) for _ in range(250)]
    shown = np.array([played_metrics(groups)["trial_yield"] for groups in steps])
    errors = np.array([played_metrics(groups)["trial_yield_se"] for groups in steps])
    assert abs(shown.mean() - 0.04) < 3 * shown.std() / math.sqrt(len(shown))
    covered = np.abs(shown - 0.04) < 1.96 * errors
    assert 0.92 < covered.mean() < 0.98
    taken = [played_metrics([g for g in groups if g.reason is None]) for groups in steps]
    assert np.mean([row["trial_yield"] for row in taken]) > 0.05


def test_nothing_played_measures_nothing() -> None:
    found = played_metrics([])
    assert found["played_groups"] == 0
    for name in ("success", "reward", "trial_calls", "distinct_trials", "trial_yield"):
        assert math.isnan(found[name])


def test_an_episode_that_sampled_nothing_has_no_staleness() -> None:
    table = pa.table({"oldest_version": pa.array([3, 2, -1], pa.int32())})
    assert staleness_metrics(5, table) == {"staleness_mean": 1.5, "staleness_max": 2.0}
    nothing = staleness_metrics(5, table.slice(2))
    assert all(math.isnan(value) for value in nothing.values())


def test_a_lost_episode_of_a_group_is_not_played(fleet: Any, numbered: Any) -> None:
    task = numbered.tasks("train", 0, 1)[0]
    leases = [
        Lease(
            run="unit",
            episode=f"g0-{i}",
            kind=RolloutKind.TRAIN,
            group="g0",
            group_number=0,
            task=task.id,
            sample_index=i,
            attempt=0,
            seed=i,
        )
        for i in range(3)
    ]
    episodes = [fleet.play(lease, task, 0, "w") for lease in leases]
    episodes[1] = replace(episodes[1], outcome=Outcome.INFRA_FAILED, reward=None, reward_parts={})
    found = played_group("g0", to_batch(episodes), DropReason.STALE)
    assert found.rewards_G.tolist() == [0.0, 0.0]
    assert found.sampled_tokens == 4
    assert played_metrics([found])["stale_groups"] == 1
