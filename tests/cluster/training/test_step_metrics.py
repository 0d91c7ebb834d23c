"""Simulated training with a scripted policy of known success: what its metrics say is true.

Real `Rollouts` and `Rounds`, the real trainer on a table of logits, and a run directory. Every
metric of every step is then computed again from what the directory holds, by plain Python.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.config.run_config import RunConfig
from cluster.scheduling.groups import Group
from cluster.scheduling.played import PlayedGroup
from cluster.training.step_metrics import played_metrics, staleness_metrics
from rollout.episode import Outcome
from rollout.episode_schema import to_batch
from rollout.store.ledger_state import DropReason
from rollout.store.run_directory import RunDirectory
from rollout.store.run_reader import RunReader
from tests.cluster.conftest import leases_of
from tests.cluster.training.metrics_again import check_every_step
from tests.cluster.training.simulated_training import (
    Training,
    config_of,
    dropped_for,
    new_run,
    scripted,
)


@pytest.fixture
def train(fleet: Any, numbered: Any, manifest_of: Any) -> Callable[..., Training]:
    canned = fleet.play

    def make(config: RunConfig, success: float, malformed: float = 0.1) -> Training:
        fleet.play = scripted(success, canned, malformed)
        return Training(config, fleet, numbered, manifest_of)

    return make


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
                truncated_G=np.zeros(8, bool),
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
    leases = leases_of(task, 3)
    episodes = [fleet.play(lease, task, 0, "w") for lease in leases]
    episodes[1] = replace(episodes[1], outcome=Outcome.INFRA_FAILED, reward=None, reward_parts={})
    found = Group("g000000", to_batch(episodes)).played(DropReason.STALE)
    assert found.rewards_G.tolist() == [0.0, 0.0]
    assert found.sampled_tokens == 4
    assert played_metrics([found])["stale_groups"] == 1
