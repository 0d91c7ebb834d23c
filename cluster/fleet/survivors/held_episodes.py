"""Episodes that a worker runs on without its driver, and those that it holds for the next one."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pyarrow as pa

from rollout.episode import Lease

Attempt = tuple[str, int]  # the episode and the number of its attempt


def attempt_of(lease: Lease) -> Attempt:
    """Return which attempt at which episode a lease is for."""
    return (lease.episode, lease.attempt)


class HeldEpisodes:
    """Runs episodes as tasks of their own, so that the death of whoever asked ends none of them,
    and holds each result until the driver has confirmed that it arrived.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[pa.Buffer]] = set()
        self._held: dict[Attempt, pa.Buffer] = {}

    async def run(self, lease: Lease, work: Coroutine[Any, Any, pa.Buffer]) -> pa.Buffer:
        """Return the result of `work`, an episode as one buffer. Raises what `work` raises."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(lambda ended: self._ended(attempt_of(lease), ended))
        return await asyncio.shield(task)

    def confirm(self, arrived: Sequence[Attempt]) -> None:
        """Let go of results that the driver has."""
        for attempt in arrived:
            self._held.pop(attempt, None)

    async def settle(self) -> list[pa.Buffer]:
        """Cancel what still runs, and return, once, every result that nobody has confirmed."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        held = list(self._held.values())
        self._held.clear()
        return held

    def _ended(self, attempt: Attempt, task: asyncio.Task[pa.Buffer]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is None:
            self._held[attempt] = task.result()
