"""No reason lets a run drop groups without a bound and without a word."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import RunConfig, to_toml
from cluster.progress import QUIET
from cluster.scheduling.collection import Collection, CollectionSize
from cluster.scheduling.dispatcher import Dispatcher
from cluster.scheduling.drops import GroupDrops
from cluster.scheduling.rollouts import Rollouts
from cluster.scheduling.rounds import Rounds
from cluster.scheduling.task_stream import TaskStream
from envs.errors import ConfigError, InfraError, TrialrunError
from rollout.episode import Episode, Lease, Outcome
from rollout.store.ledger_state import DropReason
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo

Change = Callable[[Episode], Episode]
GROUPS = 2


def config_of(path: Path, *, deterministic: bool = False) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"dir": str(path), "name": "unit", "deterministic": deterministic},
            "rollouts": {
                "groups_per_step": GROUPS,
                "group_size": 2,
                "max_staleness": 0,
                "max_refills": 1,
                "max_drops_per_group": 3,
                "max_attempts": 1,
            },
        }
    )


def new_run(config: RunConfig) -> RunDirectory:
    return RunDirectory.create(
        config.path, to_toml(config), RunInfo(run="unit", seed=0, created_at=0.0)
    )


def without_reward(outcome: Outcome) -> Change:
    return lambda episode: replace(
        episode, outcome=outcome, reward=None, reward_parts={}, error=f"said: {outcome}"
    )


def unsampled(episode: Episode) -> Episode:
    """An episode that counts although nothing was sampled: it has no policy version."""
    return replace(episode, outcome=Outcome.TRUNCATED, spans=())


def old(episode: Episode) -> Episode:
    return replace(episode, spans=(replace(episode.spans[0], version=0),))


async def started(
    source: type[Rollouts] | type[Rounds],
    fleet: Any,
    numbered: Any,
    run: RunDirectory,
    version: int,
) -> Rollouts | Rounds:
    pool = fleet.pool()
    pool.resize(1)
    await pool.wait_healthy(1)
    config = config_of(run.path.parent, deterministic=source is Rounds)
    made = source(pool, TaskStream(numbered, "train", 0), run, config)
    made.start(version)
    return made


def change(fleet: Any, change_of: Callable[[Lease], Change | None]) -> None:
    play = fleet.play

    def changed(lease: Lease, *rest: Any) -> Episode:
        made = change_of(lease)
        return made(play(lease, *rest)) if made else play(lease, *rest)

    fleet.play = changed


@pytest.mark.parametrize(
    ("made", "version", "error", "reason"),
    [
        (without_reward(Outcome.INFRA_FAILED), 0, InfraError, "infra_failed"),
        (without_reward(Outcome.DEADLINE), 0, InfraError, "deadline"),
        (without_reward(Outcome.CANCELLED), 0, InfraError, "cancelled"),
        (without_reward(Outcome.PROMPT_TOO_LONG), 0, ConfigError, "prompt_too_long"),
        (unsampled, 3, InfraError, "no_policy_tokens"),
        (old, 3, InfraError, "stale"),
    ],
)
async def test_a_step_that_only_drops_ends_with_its_reasons(
    tmp_path: Path,
    fleet: Any,
    numbered: Any,
    made: Change,
    version: int,
    error: type[TrialrunError],
    reason: str,
) -> None:
    change(fleet, lambda lease: made)
    with new_run(config_of(tmp_path)) as run:
        rollouts = await started(Rollouts, fleet, numbered, run, version)
        with pytest.raises(error, match=f"more than 7 groups .*: 8 x {reason}") as caught:
            async with asyncio.timeout(20):
                await rollouts.collect(GROUPS)
        if made not in (unsampled, old):
            assert f"said: {reason}" in str(caught.value), "an example of the error"
        await rollouts.close()


async def test_mixed_reasons_are_all_named(tmp_path: Path, fleet: Any, numbered: Any) -> None:
    kinds = [
        without_reward(Outcome.INFRA_FAILED),
        without_reward(Outcome.PROMPT_TOO_LONG),
        unsampled,
    ]
    change(fleet, lambda lease: kinds[lease.group_number % 3])
    with new_run(config_of(tmp_path)) as run:
        rollouts = await started(Rollouts, fleet, numbered, run, 0)
        with pytest.raises(InfraError) as caught:
            async with asyncio.timeout(20):
                await rollouts.collect(GROUPS)
        for reason in ("infra_failed", "prompt_too_long", "no_policy_tokens"):
            assert f" x {reason}" in str(caught.value)
        await rollouts.close()


@pytest.mark.parametrize("source", [Rollouts, Rounds])
async def test_a_task_without_room_is_skipped_at_once_and_said(
    tmp_path: Path, fleet: Any, numbered: Any, source: type[Rollouts] | type[Rounds]
) -> None:
    too_long = without_reward(Outcome.PROMPT_TOO_LONG)
    change(fleet, lambda lease: too_long if lease.group_number == 0 else None)
    with new_run(config_of(tmp_path, deterministic=source is Rounds)) as run:
        rollouts = await started(source, fleet, numbered, run, 0)
        groups = await rollouts.collect(GROUPS)
        assert "g000000" not in {group.name for group in groups}
        assert run.ledger.audit().reasons == {DropReason.PROMPT_TOO_LONG: 2}
        assert run.ledger.audit().re_leases == 0, "the same prompt is not tried again"
        skipped = rollouts.take_skipped()
        assert skipped.startswith("skipped 1 tasks") and "max_model_len" in skipped
        assert run.ledger.entries["g000000-00"].lease.task in skipped
        assert rollouts.take_skipped() == ""
        await rollouts.close()


async def test_a_round_without_room_ends_with_the_reason(
    tmp_path: Path, fleet: Any, numbered: Any
) -> None:
    change(fleet, lambda lease: without_reward(Outcome.PROMPT_TOO_LONG))
    with new_run(config_of(tmp_path, deterministic=True)) as run:
        rounds = await started(Rounds, fleet, numbered, run, 0)
        with pytest.raises(ConfigError, match=r"prompt_too_long: raise model\.max_model_len"):
            await rounds.collect(GROUPS)
        await rounds.close()


def test_the_count_begins_anew_with_every_step() -> None:
    drops = GroupDrops(2)
    for _ in range(5):
        drops.add(DropReason.STALE, "t")
        drops.add(DropReason.ZERO_VARIANCE, "t")
        drops.end_step()
    drops.add(DropReason.STALE, "t")
    drops.add(DropReason.STALE, "t")
    with pytest.raises(InfraError, match="3 x stale"):
        drops.add(DropReason.STALE, "t")


@pytest.mark.parametrize("long", [3, 6])
async def test_a_collection_skips_what_has_no_room(
    tmp_path: Path, fleet: Any, numbered: Any, long: int
) -> None:
    """Of six tasks the first `long` have no room; that is no failure, unless it is all of them."""
    too_long = without_reward(Outcome.PROMPT_TOO_LONG)
    change(fleet, lambda lease: too_long if lease.group_number < long else None)
    config = config_of(tmp_path)
    with new_run(config) as run:
        pool = fleet.pool()
        pool.resize(1)
        await pool.wait_healthy(1)
        dispatcher = Dispatcher(pool, run, config.rollouts, config.episode)
        size = CollectionSize(tasks=6, samples=2, seed=0, concurrency=2)
        collection = Collection(run, TaskStream(numbered, "train", 0), dispatcher, size)
        if long == 6:
            with pytest.raises(ConfigError, match="no episode could start: skipped 6 tasks"):
                await collection.run_all(QUIET)
        else:
            await collection.run_all(QUIET)
        assert run.ledger.audit().reasons[DropReason.PROMPT_TOO_LONG] == 2 * long
