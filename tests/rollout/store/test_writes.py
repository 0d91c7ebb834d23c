"""Writes on a thread: in order, without gaps, with their errors, and without stopping the loop."""

import asyncio
import errno
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from envs.errors import DeadlineError, StoreError
from rollout.episode import Episode
from rollout.episode_schema import to_batch
from rollout.store.ledger_state import State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from rollout.store.run_reader import RunReader
from rollout.store.writes import QUEUED, Writes
from tests.rollout.conftest import lease_in

MakeEpisode = Callable[..., Episode]
PATIENCE_S = 20.0


class Disk:
    """Takes writes, slowly while its gate is closed, and none once it is full."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.full_at = -1

    def write(self, number: int) -> None:
        self.gate.wait(PATIENCE_S)
        if number == self.full_at:
            raise StoreError("no room")
        self.written.append(number)


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_without_a_loop_the_caller_writes_and_gets_each_error(disk: Disk, tmp_path: Path) -> None:
    writes = Writes(tmp_path)
    disk.full_at = 1
    writes.add(partial(disk.write, 0))
    with pytest.raises(StoreError, match="no room"):
        writes.add(partial(disk.write, 1))
    writes.now(partial(disk.write, 2))
    assert disk.written == [0, 2]
    writes.close()
    writes.check_reported()


async def test_the_loop_goes_on_while_the_disk_hangs(disk: Disk, tmp_path: Path) -> None:
    writes = Writes(tmp_path)
    disk.gate.clear()
    storing = asyncio.create_task(writes.carry_out(partial(disk.write, 0)))
    await asyncio.sleep(0)
    writes.add(partial(disk.write, 1))  # returns although the disk hangs
    for _ in range(50):
        await asyncio.sleep(0)
    assert not storing.done() and disk.written == []
    disk.gate.set()
    await storing
    writes.close()
    assert disk.written == [0, 1]


async def test_writes_keep_their_order_and_the_queue_its_bound(disk: Disk, tmp_path: Path) -> None:
    writes = Writes(tmp_path)
    disk.gate.clear()
    added: list[int] = []

    def note(number: int) -> None:
        disk.write(number)

    async def store(number: int) -> None:
        await writes.carry_out(partial(note, number))
        added.append(number)

    storing = [asyncio.create_task(store(number)) for number in range(3 * QUEUED)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert writes.queued <= QUEUED
    disk.gate.set()
    await asyncio.gather(*storing)
    writes.close()
    assert disk.written == list(range(3 * QUEUED))
    # One whose write is done when it looks need not wait, so it may return before an earlier one.
    assert sorted(added) == disk.written


async def test_the_first_error_is_the_last_write_and_everybody_gets_it(
    disk: Disk, tmp_path: Path
) -> None:
    writes = Writes(tmp_path)
    disk.gate.clear()
    disk.full_at = 2
    storing = [
        asyncio.create_task(writes.carry_out(partial(disk.write, number))) for number in range(5)
    ]
    await asyncio.sleep(0)
    disk.gate.set()
    found = await asyncio.gather(*storing, return_exceptions=True)
    assert [type(outcome) for outcome in found] == [type(None)] * 2 + [StoreError] * 3
    with pytest.raises(StoreError, match="no room"):
        writes.add(partial(disk.write, 5))
    writes.close()
    writes.check_reported()  # it was
    assert disk.written == [0, 1]


async def test_an_error_that_nobody_waited_for_is_raised_at_the_end(
    disk: Disk, tmp_path: Path
) -> None:
    writes = Writes(tmp_path)
    disk.full_at = 0
    writes.start()
    writes.add(partial(disk.write, 0))
    writes.close()
    with pytest.raises(StoreError, match="no room"):
        writes.check_reported()


async def test_a_disk_that_hangs_is_given_up(disk: Disk, tmp_path: Path) -> None:
    writes = Writes(tmp_path, stuck_s=0.05)
    disk.gate.clear()
    with pytest.raises(DeadlineError, match="hangs"):
        await writes.carry_out(partial(disk.write, 0))
    with pytest.raises(DeadlineError, match="hangs"):
        writes.add(partial(disk.write, 1))
    disk.gate.set()


async def test_a_cancelled_caller_leaves_its_write_and_the_others(
    disk: Disk, tmp_path: Path
) -> None:
    writes = Writes(tmp_path)
    disk.gate.clear()
    storing = [asyncio.create_task(writes.carry_out(partial(disk.write, n))) for n in range(2)]
    await asyncio.sleep(0)
    storing[0].cancel()
    await asyncio.sleep(0)
    disk.gate.set()
    await storing[1]
    writes.close()
    assert disk.written == [0, 1]


# The run directory on a thread


def new_run(path: Path) -> RunDirectory:
    return RunDirectory.create(path, "", RunInfo(run="run-1", seed=0, created_at=0.0))


async def test_an_episode_is_stored_before_the_ledger_says_so(
    tmp_path: Path, episode_with: MakeEpisode
) -> None:
    """Seen from another reader at every moment: no finished episode is missing in the store."""
    leases = [lease_in("g0", sample) for sample in range(40)]
    with new_run(tmp_path / "run") as run:
        run.ledger.lease(leases)

        async def play(sample: int) -> None:
            lease = leases[sample]
            await run.store(to_batch([episode_with(lease.episode)]))
            run.ledger.finish(lease)

        playing = asyncio.gather(*map(play, range(40)))
        while not playing.done():
            reader = RunReader(run.path)
            entries = reader.ledger().entries.values()
            finished = {e.lease.episode for e in entries if e.state is State.FINISHED}
            assert finished <= {row.episode for row in RunReader(run.path).episodes()}
            await asyncio.sleep(0)
        await playing
    states = RunReader(tmp_path / "run").ledger().entries.values()
    assert {entry.state for entry in states} == {State.FINISHED}


async def test_close_writes_what_was_added(tmp_path: Path, episode_with: MakeEpisode) -> None:
    lease = lease_in("g0", 0)
    with new_run(tmp_path / "run") as run:
        await run.synced()  # from now on the thread writes
        run.ledger.lease([lease])
        run.record_metrics(1, {"loss": 0.5})
        run.append(to_batch([episode_with(lease.episode)]))
        assert [row.episode for row in RunReader(run.path).episodes()] == [lease.episode]
        run.ledger.finish(lease)
    reader = RunReader(tmp_path / "run")
    assert [row.values for row in reader.metrics()] == [{"loss": 0.5}]
    assert reader.ledger().entries[lease.episode].state is State.FINISHED
    with pytest.raises(StoreError, match="closed"):
        run.ledger.re_lease(lease.episode, "too late")


async def test_a_full_disk_reaches_whoever_stores_next(
    tmp_path: Path, episode_with: MakeEpisode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_run(tmp_path / "run") as run:
        await run.store(to_batch([episode_with("e0")]))

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as disk:
            disk.setattr("os.write", full)
            with pytest.raises(StoreError, match=r"could not write 1 episodes \(e1\).*Make room"):
                await run.store(to_batch([episode_with("e1")]))
        with pytest.raises(StoreError, match="Make room"):
            await run.store(to_batch([episode_with("e2")]))
        with pytest.raises(StoreError, match="Make room"):
            run.ledger.lease([lease_in("g0", 0)])
    assert [row.episode for row in RunReader(run.path).episodes()] == ["e0"]
