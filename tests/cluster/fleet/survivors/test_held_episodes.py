"""Results outlive whoever asked for them, until the driver confirms them."""

import asyncio

import pyarrow as pa
import pytest

from cluster.fleet.survivors.held_episodes import HeldEpisodes, attempt_of
from envs.errors import EngineError
from rollout.episode import Lease
from tests.cluster.conftest import Numbered, leases_of

FIRST, SECOND, THIRD = leases_of(Numbered().tasks("train", 0, 1)[0], 3)


async def result(lease: Lease, after: asyncio.Event | None = None) -> pa.Buffer:
    if after is not None:
        await after.wait()
    return pa.py_buffer(lease.episode.encode())


async def test_a_result_is_held_until_it_is_confirmed() -> None:
    held = HeldEpisodes()
    for lease in (FIRST, SECOND):
        assert (await held.run(lease, result(lease))).to_pybytes() == lease.episode.encode()
    held.confirm([attempt_of(FIRST), ("unknown", 0)])
    assert [row.to_pybytes().decode() for row in await held.settle()] == [SECOND.episode]
    assert await held.settle() == []


async def test_an_episode_goes_on_without_the_one_who_asked() -> None:
    held, gate = HeldEpisodes(), asyncio.Event()
    asked = asyncio.create_task(held.run(FIRST, result(FIRST, gate)))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    gate.set()
    await asyncio.sleep(0.01)
    assert [row.to_pybytes().decode() for row in await held.settle()] == [FIRST.episode]


async def test_settling_ends_what_still_runs_and_what_failed_is_not_held() -> None:
    held, never = HeldEpisodes(), asyncio.Event()

    async def broken() -> pa.Buffer:
        raise EngineError("broken")

    asked = asyncio.create_task(held.run(SECOND, result(SECOND, never)))
    with pytest.raises(EngineError, match="broken"):
        await held.run(THIRD, broken())
    assert await held.settle() == []
    with pytest.raises(asyncio.CancelledError):
        await asked
