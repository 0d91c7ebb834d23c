import asyncio
from dataclasses import dataclass

import pytest

from cluster.fleet.free_slots import FreeSlots
from envs.errors import InfraError


@dataclass
class Stub:
    name: str
    running: int = 0
    capacity: int = 2


def slots_of(*workers: Stub, per_worker: int = 2) -> FreeSlots[Stub]:
    slots: FreeSlots[Stub] = FreeSlots()
    for worker in workers:
        worker.capacity = per_worker
        slots.open(worker)
    return slots


async def in_line(slots: FreeSlots[Stub], count: int) -> "list[asyncio.Task[Stub]]":
    waiting = [asyncio.create_task(slots.wait()) for _ in range(count)]
    await asyncio.sleep(0)
    return waiting


def test_the_least_loaded_or_the_preferred_is_taken() -> None:
    a, b = Stub("a"), Stub("b")
    slots = slots_of(a, b)
    assert [slots.take("b"), slots.take("b"), slots.take("b")] == [b, b, a]
    assert slots.take() is a
    assert slots.take() is None
    slots.leave(b)
    assert slots.take("a") is b
    assert (a.running, b.running) == (2, 2)


async def test_a_place_goes_to_the_first_in_line_and_wakes_nobody_else() -> None:
    a = Stub("a", running=2)
    slots = slots_of(a)
    waiting = await in_line(slots, 3)
    slots.leave(a)
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, False, False]
    slots.leave(a)
    slots.leave(a)
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, True, True]
    assert a.running == 2


async def test_who_has_just_come_does_not_overtake_the_line() -> None:
    a = Stub("a", running=2)
    slots = slots_of(a)
    waiting = await in_line(slots, 1)
    a.running = 1  # as of a worker that is opened with a place free
    slots.open(a)
    assert slots.take() is None
    assert await waiting[0] is a


async def test_a_place_of_a_cancelled_caller_goes_to_the_next() -> None:
    a = Stub("a", running=1)
    slots = slots_of(a, per_worker=1)
    waiting = await in_line(slots, 3)
    waiting[0].cancel()
    await asyncio.sleep(0)
    slots.leave(a)  # handed to the second, which is cancelled before it runs
    waiting[1].cancel()
    assert await waiting[2] is a
    assert a.running == 1


async def test_no_place_of_a_closed_worker_is_handed_out() -> None:
    a, b = Stub("a", running=1), Stub("b")
    slots = slots_of(a, b, per_worker=1)
    slots.close(b)
    assert slots.take("b") is None
    waiting = await in_line(slots, 2)
    slots.close(a)
    slots.leave(a)
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    slots.open(b)
    assert await waiting[0] is b
    slots.fail(InfraError("none starts"))
    with pytest.raises(InfraError, match="none starts"):
        await waiting[1]


async def test_a_fleet_that_opens_hands_out_its_places_in_turns() -> None:
    """Thousands of episodes that start in one turn of the loop would stop it."""
    slots = slots_of()
    waiting = await in_line(slots, 100)
    a, b = Stub("a", capacity=100), Stub("b", capacity=100)
    slots.open(a)
    slots.open(b)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert 0 < sum(task.done() for task in waiting) < 50
    await asyncio.gather(*waiting)
    assert abs(a.running - b.running) <= 1


async def test_workers_have_as_many_places_as_each_of_them_can_hold() -> None:
    large, small = Stub("large", capacity=5), Stub("small", capacity=1)
    slots: FreeSlots[Stub] = FreeSlots()
    slots.open(small)
    slots.open(large)
    taken = [slots.take() for _ in range(7)]
    assert taken.count(small) == 1 and taken.count(large) == 5 and taken[-1] is None
    (waiting,) = await in_line(slots, 1)
    slots.leave(large)
    assert await waiting is large


async def test_no_place_is_handed_out_during_a_pause_and_no_deadline_passes() -> None:
    a = Stub("a", running=1)
    slots = slots_of(a, per_worker=1)

    async def in_time() -> Stub:
        async with slots.deadline(0.2):
            return await slots.wait()

    early = asyncio.create_task(in_time())
    await asyncio.sleep(0)
    slots.pause()
    slots.leave(a)
    late = asyncio.create_task(in_time())
    await asyncio.sleep(0.4)
    assert slots.paused and slots.take() is None
    assert not early.done() and not late.done() and a.running == 0
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slots.admitted(), 0.01)
    slots.resume()
    assert await early is a
    with pytest.raises(TimeoutError):  # the only place is taken
        await late
    await asyncio.wait_for(slots.admitted(), 1.0)
