import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import RunConfig, to_toml
from cluster.fleet.pool import RolloutPool
from cluster.scheduling.rounds import Rounds
from cluster.scheduling.task_stream import TaskStream
from envs.errors import InfraError
from rollout.episode import Outcome
from rollout.store.ledger_state import DropReason, State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from rollout.weights.manifest import WeightManifest

ManifestOf = Callable[[int], WeightManifest]
STEPS, GROUPS, REFILLS = 5, 3, 2


def make_config(path: Path, staleness: int = 0) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"dir": str(path), "name": "unit", "steps": STEPS, "deterministic": True},
            "rollouts": {
                "groups_per_step": GROUPS,
                "group_size": 2,
                "max_staleness": staleness,
                "max_refills": REFILLS,
            },
        }
    )


def new_run(config: RunConfig) -> RunDirectory:
    return RunDirectory.create(
        config.path, to_toml(config), RunInfo(run="unit", seed=0, created_at=0.0)
    )


class Stage:
    """Rounds on workers that are slow at random; rewards follow from the episodes' seeds."""

    def __init__(self, fleet: Any, numbered: Any, workers: int) -> None:
        self.fleet = fleet
        self.pool: RolloutPool = fleet.pool()
        self.workers = workers
        self.numbered = numbered
        self.versions: dict[str, set[int]] = {}
        self.ruined: Callable[[str], bool] = lambda group: False
        self._canned = fleet.play
        fleet.play = self._play

    def _play(self, lease: Any, task: Any, version: int, worker: str) -> Any:
        episode = self._canned(lease, task, version, worker)
        if self.ruined(lease.group):
            return replace(episode, outcome=Outcome.INFRA_FAILED, reward=None, reward_parts={})
        self.versions.setdefault(lease.group, set()).add(version)
        return replace(episode, reward=float(lease.seed % 2))

    async def rounds(self, run: RunDirectory, config: RunConfig, version: int = 0) -> Rounds:
        self.pool.resize(self.workers)
        await self.pool.wait_healthy(self.workers)
        rounds = Rounds(self.pool, TaskStream(self.numbered, "train", 0), run, config)
        rounds.start(version)
        return rounds


@pytest.fixture
def stage_of(fleet_of: Any, numbered: Any) -> Callable[[int, int], Stage]:
    return lambda seed, workers: Stage(fleet_of(seed), numbered, workers)


async def train(
    rounds: Rounds, run: RunDirectory, steps: range, manifest_of: ManifestOf
) -> list[list[str]]:
    trained: list[list[str]] = []
    for step in steps:
        groups = await rounds.collect(GROUPS)
        trained.append([episode for group in groups for episode in group.episodes])
        run.ledger.train(step, trained[-1])
        await rounds.push_weights(manifest_of(step))
    return trained


async def whole_run(
    path: Path, stage: Stage, manifest_of: ManifestOf, staleness: int = 0
) -> tuple[list[list[str]], set[str]]:
    """Return the episodes of every step in the order of training, and those dropped."""
    config = make_config(path, staleness)
    with new_run(config) as run:
        rounds = await stage.rounds(run, config)
        trained = await train(rounds, run, range(1, STEPS + 1), manifest_of)
        await rounds.close()
        rounds.abandon()
        assert run.ledger.audit().violations == ()
        entries = run.ledger.entries.items()
        dropped = {episode for episode, entry in entries if entry.state is State.DROPPED}
    await stage.pool.close()
    return trained, dropped


@pytest.mark.parametrize("staleness", [0, 2])
async def test_order_of_arrival_and_number_of_workers_change_nothing(
    tmp_path: Path, stage_of: Any, manifest_of: ManifestOf, staleness: int
) -> None:
    seen = []
    for seed, workers in ((1, 1), (2, 3)):
        stage = stage_of(seed, workers)
        seen.append(await whole_run(tmp_path / str(seed), stage, manifest_of, staleness))
        for group, versions in stage.versions.items():
            step = int(group[1:]) // (2 * GROUPS + REFILLS) + 1
            assert versions == {max(0, step - 1 - staleness)}, "one version for all of a round"
    assert seen[0] == seen[1]
    trained, dropped = seen[0]
    assert len(trained) == STEPS
    assert all(len(set(episodes)) == 2 * GROUPS for episodes in trained)
    assert dropped, "groups without variance were replaced"


async def test_no_weights_are_pushed_while_an_episode_is_in_flight(
    tmp_path: Path, stage_of: Any, manifest_of: ManifestOf
) -> None:
    config, stage = make_config(tmp_path, staleness=1), stage_of(1, 2)
    with new_run(config) as run:
        rounds = await stage.rounds(run, config)
        stage.fleet.gate.clear()
        pushing = asyncio.create_task(rounds.push_weights(manifest_of(1)))
        while not any(worker.running for worker in stage.pool.workers):
            await asyncio.sleep(0)
        assert [worker.version for worker in stage.fleet.workers] == [0, 0]
        stage.fleet.gate.set()
        await pushing
        assert [worker.version for worker in stage.fleet.workers] == [1, 1]
        await rounds.close()
    await stage.pool.close()


@pytest.mark.parametrize(("killed_after", "checkpoint"), [(0, 0), (1, 0), (3, 2)])
async def test_a_resumed_run_goes_on_as_if_it_had_not_been_killed(
    tmp_path: Path, stage_of: Any, manifest_of: ManifestOf, killed_after: int, checkpoint: int
) -> None:
    """Killed with a round half played, after steps that no checkpoint holds."""
    whole, _ = await whole_run(tmp_path / "whole", stage_of(1, 2), manifest_of)
    config, stage = make_config(tmp_path / "killed"), stage_of(2, 2)
    run = new_run(config)
    in_flight = killed_after * (2 * GROUPS + REFILLS) + GROUPS - 1
    stage.fleet.gates[f"g{in_flight:06d}"] = asyncio.Event()
    rounds = await stage.rounds(run, config)
    before = await train(rounds, run, range(1, killed_after + 1), manifest_of)
    while sum(entry.state is State.FINISHED for entry in run.ledger.entries.values()) < 3:
        await asyncio.sleep(0)
    await rounds.close()
    await stage.pool.close()
    run.close()

    stage = stage_of(3, 1)
    with RunDirectory.open(config.path) as again:
        again.recover(checkpoint)
        rounds = await stage.rounds(again, config, checkpoint)
        after = await train(rounds, again, range(checkpoint + 1, STEPS + 1), manifest_of)
        await rounds.close()
        rounds.abandon()
        assert again.ledger.audit().violations == ()
        assert again.ledger.audit().re_leases > 0
    await stage.pool.close()
    assert before == whole[:killed_after]
    assert after == whole[checkpoint:]


async def test_a_ruined_group_is_replaced_and_a_ruined_world_ends_the_run(
    tmp_path: Path, stage_of: Any, manifest_of: ManifestOf
) -> None:
    config, stage = make_config(tmp_path), stage_of(1, 2)
    stage.ruined = lambda group: group == "g000001" or group >= "g000008"
    with new_run(config) as run:
        rounds = await stage.rounds(run, config)
        names = [group.name for group in await rounds.collect(GROUPS)]
        assert "g000001" not in names
        assert names == sorted(names)
        assert run.ledger.audit().reasons[DropReason.INFRA_FAILED] == 2
        await rounds.push_weights(manifest_of(1))
        with pytest.raises(InfraError, match="ended more than 3 groups of round 2"):
            await rounds.collect(GROUPS)
        await rounds.close()
    await stage.pool.close()
