"""Recovery of a run directory: the ledger and the stored episodes agree after a kill."""

from collections.abc import Callable
from pathlib import Path

import pytest

from envs.errors import MissingError, StoreError
from rollout.episode import Episode, Outcome
from rollout.episode_schema import from_batch, to_batch
from rollout.store.ledger_state import DropReason
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from rollout.store.run_reader import EpisodeFilter, RunReader
from tests.rollout.conftest import lease_in

RUN = RunInfo(run="run-1", seed=7, created_at=1.5, command="trialrun train", versions={"ray": "2"})
MakeEpisode = Callable[..., Episode]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run"


def ids(reader: RunReader, wanted: EpisodeFilter | None = None) -> list[str]:
    return [row.episode for row in reader.episodes(wanted)]


def test_a_group_is_what_the_ledger_counts(path: Path, episode_with: MakeEpisode) -> None:
    first, second, third = (lease_in("g", i) for i in range(3))
    with RunDirectory.create(path, "", RUN) as directory:
        directory.ledger.lease([first, second, third])
        directory.append(to_batch([episode_with(lease=second)]))
        directory.append(
            to_batch(
                [episode_with(lease=third), episode_with(lease=first, outcome=Outcome.DEADLINE)]
            )
        )
        again = directory.ledger.re_lease(first.episode, "deadline")
        directory.append(to_batch([episode_with(lease=again, tokens=30)]))
        directory.ledger.finish(second)
        directory.ledger.finish(again)
        directory.ledger.drop([third.episode], DropReason.OVERLONG)
        group = from_batch(RunReader(path).group("g"))
        assert [(e.lease, len(e.token_ids_T)) for e in group] == [(again, 30), (second, 12)]
        assert RunReader(path).episode("g.0").lease == again
        with pytest.raises(MissingError, match="found none in 'h'"):
            RunReader(path).group("h")


def test_recovering_rolls_back_and_squares_the_ledger_with_the_store(
    path: Path, episode_with: MakeEpisode
) -> None:
    with RunDirectory.create(path, "", RUN) as directory:
        for name in "abcd":
            directory.ledger.lease([lease_in(name, 0), lease_in(name, 1)])
        directory.append(
            to_batch([episode_with(lease=lease_in(n, i)) for n in "abc" for i in (0, 1)])
        )
        directory.append(
            to_batch([episode_with(lease=lease_in("d", 0), outcome=Outcome.INFRA_FAILED)])
        )
        for name in "ab":
            for index in (0, 1):
                directory.ledger.finish(lease_in(name, index))
        directory.ledger.train(0, ["b.0", "b.1"])
        directory.ledger.train(1, ["a.0", "a.1"])
        directory.ledger.finish(lease_in("c", 0))
    with RunDirectory.open(path) as directory:
        directory.recover(0)
        ready = directory.ledger.ready_groups()
        assert [(group.group, group.planned_step) for group in ready] == [("a", 1), ("c", None)]
        assert directory.ledger.open_leases() == [lease_in("d", 0), lease_in("d", 1)]
        assert all(len(RunReader(path).group(group.group)) == 2 for group in ready)


def test_a_finished_episode_that_did_not_reach_the_disk_is_leased_again(
    path: Path, episode_with: MakeEpisode
) -> None:
    with RunDirectory.create(path, "", RUN) as directory:
        directory.ledger.lease([lease_in("a", 0), lease_in("a", 1)])
        directory.append(to_batch([episode_with(lease=lease_in("a", i)) for i in (0, 1)]))
        for index in (0, 1):
            directory.ledger.finish(lease_in("a", index))
    (path / "episodes" / "000001.arrows").write_bytes(b"")
    with pytest.raises(StoreError, match="2 are missing"):
        RunReader(path).group("a")
    with RunDirectory.open(path) as directory:
        directory.recover(-1)
        assert directory.ledger.open_leases() == [lease_in("a", 0, 1), lease_in("a", 1, 1)]
