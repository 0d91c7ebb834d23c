import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import RunConfig, to_toml
from cluster.scheduling.rollouts import Rollouts
from cluster.scheduling.task_stream import TaskStream
from cluster.training.job import Job
from envs.errors import StoreError
from learner.report import StepReport
from rollout.store.ledger_state import DropReason, Entry, State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from rollout.store.run_reader import RunReader
from rollout.weights.manifest import WeightManifest

ManifestOf = Callable[[int], WeightManifest]


def make_config(path: Path, **rollouts: int) -> RunConfig:
    section = {
        "groups_per_step": 2,
        "group_size": 4,
        "max_staleness": 0,
        "max_refills": 0,
    } | rollouts
    return RunConfig.model_validate(
        {"run": {"dir": str(path), "name": "unit"}, "rollouts": section}
    )


def new_run(config: RunConfig) -> RunDirectory:
    return RunDirectory.create(
        config.path, to_toml(config), RunInfo(run="unit", seed=0, created_at=0.0)
    )


async def started(
    fleet: Any, numbered: Any, run: RunDirectory, config: RunConfig, version: int = 0
) -> Rollouts:
    pool = fleet.pool()
    pool.resize(2)
    await pool.wait_healthy(2)
    rollouts = Rollouts(pool, TaskStream(numbered, "train", 0), run, config)
    rollouts.start(version)
    return rollouts


async def test_on_policy_plays_no_more_than_the_version_allows(
    tmp_path: Path, fleet: Any, numbered: Any, manifest_of: ManifestOf
) -> None:
    config = make_config(tmp_path)
    with new_run(config) as run:
        rollouts = await started(fleet, numbered, run, config)
        for step in (1, 2, 3):
            groups = await rollouts.collect(2)
            assert [group.oldest_version for group in groups] == [step - 1] * 2
            assert [group.name for group in groups] == [
                f"g{2 * step - 2:06d}",
                f"g{2 * step - 1:06d}",
            ]
            await asyncio.sleep(0.02)
            assert len(fleet.started) == 8 * step, "nothing of the next version yet"
            run.ledger.train(step, [episode for group in groups for episode in group.episodes])
            await rollouts.push_weights(manifest_of(step))
        await rollouts.close()
        rollouts.abandon()
        assert run.ledger.audit().violations == ()
        assert run.ledger.audit().states[State.TRAINED] == 24


async def test_staleness_admits_one_step_ahead(tmp_path: Path, fleet: Any, numbered: Any) -> None:
    config = make_config(tmp_path, max_staleness=1)
    with new_run(config) as run:
        rollouts = await started(fleet, numbered, run, config)
        await rollouts.collect(2)
        await asyncio.sleep(0.05)
        assert len(fleet.started) == 16
        await rollouts.close()


async def test_a_group_that_others_overtook_is_dropped_as_stale(
    tmp_path: Path, fleet: Any, numbered: Any, manifest_of: ManifestOf
) -> None:
    """Group 0 begins with version 0 and arrives when the step after version 2 collects."""
    config = make_config(tmp_path, max_staleness=1)
    fleet.gates["g000000"] = asyncio.Event()
    with new_run(config) as run:
        rollouts = await started(fleet, numbered, run, config)
        seen: list[str] = []
        for step in (1, 2, 3):
            groups = await rollouts.collect(2)
            assert all(step - 1 - group.oldest_version <= 1 for group in groups)
            seen += [group.name for group in groups]
            run.ledger.train(step, [episode for group in groups for episode in group.episodes])
            if step == 2:
                fleet.gates["g000000"].set()
                while any(e.state is State.LEASED for e in first_group(run)):
                    await asyncio.sleep(0)
            await rollouts.push_weights(manifest_of(step))
        assert "g000000" not in seen
        assert {entry.reason for entry in first_group(run)} == {DropReason.STALE}
        while len(run.ledger.groups) < 2 * (3 + 2) + 1:
            await asyncio.sleep(0)  # its place is played anew
        await rollouts.close()
        rollouts.abandon()
        audit = run.ledger.audit()
        assert audit.violations == ()
        assert (audit.states[State.TRAINED], audit.reasons[DropReason.STALE]) == (24, 4)


def first_group(run: RunDirectory) -> list[Entry]:
    return [run.ledger.entries[episode] for episode in run.ledger.groups["g000000"]]


async def test_groups_without_variance_are_replaced_within_the_bound(
    tmp_path: Path, fleet: Any, numbered: Any
) -> None:
    config = make_config(tmp_path, max_refills=3)
    play = fleet.play

    def flat(lease: Any, *rest: Any) -> Any:
        from dataclasses import replace

        return replace(play(lease, *rest), reward=0.0)

    fleet.play = flat
    with new_run(config) as run:
        rollouts = await started(fleet, numbered, run, config)
        groups = await rollouts.collect(2)
        assert not any(group.has_signal(config.learner) for group in groups), (
            "the bound is reached, the run goes on"
        )
        assert run.ledger.audit().reasons == {DropReason.ZERO_VARIANCE: 12}
        await rollouts.close()


async def test_what_the_world_fails_is_leased_again(
    tmp_path: Path, fleet: Any, numbered: Any, failing_first: Any
) -> None:
    config = make_config(tmp_path)
    fleet.play = failing_first
    with new_run(config) as run:
        rollouts = await started(fleet, numbered, run, config)
        groups = await rollouts.collect(2)
        assert [group.batch.num_rows for group in groups] == [4, 4]
        assert groups[0].batch["attempt"].to_pylist() == [0, 1, 0, 1]
        assert run.ledger.audit().re_leases == 4
        await rollouts.close()


async def test_a_group_the_world_ruins_is_dropped_and_refilled(
    tmp_path: Path, fleet: Any, numbered: Any, failing_first: Any
) -> None:
    from dataclasses import replace

    from rollout.episode import Outcome

    config = make_config(tmp_path)
    play = fleet.play

    def ruined(lease: Any, *rest: Any) -> Any:
        episode = play(lease, *rest)
        if lease.group == "g000000" and lease.sample_index:
            return replace(episode, outcome=Outcome.INFRA_FAILED, reward=None, reward_parts={})
        return episode

    fleet.play = ruined
    with new_run(config) as run:
        rollouts = await started(fleet, numbered, run, config)
        groups = await rollouts.collect(2)
        assert {group.name for group in groups} == {"g000001", "g000002"}
        assert run.ledger.audit().reasons == {DropReason.INFRA_FAILED: 4}
        await rollouts.close()


async def test_a_worker_lost_mid_group_loses_no_episode(
    tmp_path: Path, fleet: Any, numbered: Any
) -> None:
    config = make_config(tmp_path)
    fleet.gate.clear()
    with new_run(config) as run:
        rollouts = await started(fleet, numbered, run, config)
        while len(fleet.started) < 8:
            await asyncio.sleep(0)
        fleet.workers[0].dead.set()
        fleet.gate.set()
        groups = await rollouts.collect(2)
        assert sum(group.batch.num_rows for group in groups) == 8
        assert run.ledger.audit().re_leases > 0
        assert run.ledger.open_leases() == []
        await rollouts.close()


@pytest.mark.parametrize("trained", [0, 1])
async def test_a_resumed_run_trains_every_finished_group_once(
    tmp_path: Path, fleet: Any, numbered: Any, manifest_of: ManifestOf, trained: int
) -> None:
    """The first run dies with step 1 trained or not, group 2 half played, and no checkpoint."""
    config = make_config(tmp_path, max_staleness=1)
    run = new_run(config)
    rollouts = await started(fleet, numbered, run, config)
    groups = await rollouts.collect(2)
    if trained:
        run.ledger.train(1, [episode for group in groups for episode in group.episodes])
    while run.ledger.open_leases():
        await asyncio.sleep(0.005)
    fleet.gate.clear()
    await rollouts.push_weights(manifest_of(1))
    while len(fleet.started) < 24:
        await asyncio.sleep(0)
    await rollouts.close()
    left_open = {lease.episode for lease in run.ledger.open_leases()}
    assert len(left_open) == 8
    run.close()

    fleet.gate.set()
    with RunDirectory.open(config.path) as again:
        again.recover(0)
        resumed = await started(fleet, numbered, again, config)
        seen: list[str] = []
        for step in (1, 2, 3):
            for group in await resumed.collect(2):
                seen.append(group.name)
                assert group.batch.num_rows == 4
                again.ledger.train(step, group.episodes)
            await resumed.push_weights(manifest_of(step))
        assert sorted(seen) == [f"g{i:06d}" for i in range(6)], "each group once, none lost"
        assert seen[:2] == [group.name for group in groups], "in their old order"
        assert left_open <= {
            e for e, entry in again.ledger.entries.items() if entry.state is State.TRAINED
        }
        await resumed.close()


async def test_what_the_learner_leaves_out_is_dropped_and_compared_again_after_a_roll_back(
    tmp_path: Path, fleet: Any, numbered: Any
) -> None:
    config = make_config(tmp_path)
    left_out = [("g000000-01", "truncated"), ("g000001-02", "bad_logprobs")]
    report = StepReport(metrics={}, annotations=None, dropped=left_out)
    with new_run(config) as run:
        rollouts = await started(fleet, numbered, run, config)
        nothing: Any = None
        job = Job(config, run, nothing, rollouts, nothing, None)
        await job.record_step(1, await rollouts.collect(2), report)
        audit = run.ledger.audit()
        assert audit.violations == ()
        assert audit.states[State.TRAINED] == 6
        assert audit.reasons == {DropReason.TRUNCATED: 1, DropReason.BAD_LOGPROBS: 1}
        await rollouts.close()
    with RunDirectory.open(config.path) as again:
        again.recover(0)
        resumed = await started(fleet, numbered, again, config)
        groups = await resumed.collect(2)
        assert [group.batch.num_rows for group in groups] == [4, 4], "the baseline is as it was"
        assert [group.planned_step for group in groups] == [1, 1]
        job = Job(config, again, nothing, resumed, nothing, None)
        await job.record_step(1, groups, report)
        assert again.ledger.audit() == audit
        await resumed.close()


async def test_a_full_disk_ends_the_collection_and_what_was_finished_is_stored(
    tmp_path: Path, fleet: Any, numbered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path)
    fleet.gates["g000001"] = asyncio.Event()
    with new_run(config) as run:
        rollouts = await started(fleet, numbered, run, config)
        while not any(entry.state is State.FINISHED for entry in run.ledger.entries.values()):
            await asyncio.sleep(0)

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as disk:
            disk.setattr("os.write", full)
            fleet.gates["g000001"].set()
            with pytest.raises(StoreError, match=r"could not write.*Make room and resume"):
                await rollouts.collect(2)
        await rollouts.close()
    reader = RunReader(config.path)
    entries = reader.ledger().entries.values()
    finished = {entry.lease.episode for entry in entries if entry.state is State.FINISHED}
    assert finished <= {row.episode for row in reader.episodes()}
    with RunDirectory.open(config.path) as again:
        again.recover(0)
        assert len(again.ledger.ready_groups()) <= 1
        assert {lease.group for lease in again.ledger.open_leases()} >= {"g000001"}


async def test_memory_of_the_ledger_does_not_grow_with_the_steps(
    tmp_path: Path, fleet: Any, numbered: Any, manifest_of: ManifestOf
) -> None:
    config = make_config(tmp_path, max_staleness=1)
    report = StepReport(metrics={}, annotations=None, dropped=[])
    nothing: Any = None
    with new_run(config) as run:
        rollouts = await started(fleet, numbered, run, config)
        job = Job(config, run, nothing, rollouts, nothing, None)
        held = []
        for step in range(1, 9):
            await job.record_step(step, await rollouts.collect(2), report)
            held.append(len(run.ledger.entries))
            await rollouts.push_weights(manifest_of(step))
        assert max(held[3:]) <= max(held[:3]) + 8
        assert run.ledger.audit().states[State.TRAINED] == 8 * 8, "archived ones are counted"
        assert run.ledger.is_known("g000000") and "g000000" not in run.ledger.groups
        await rollouts.close()
        run.sync()
        assert RunReader(config.path).ledger().audit().states[State.TRAINED] == 8 * 8
        run.recover(2)  # as when the learner is lost: archived groups too are trained again
        ready = [group for group in run.ledger.ready_groups() if group.planned_step is not None]
        assert [group.planned_step for group in ready] == [s for s in range(3, 9) for _ in range(2)]
