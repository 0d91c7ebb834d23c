"""Places for episodes on the workers of a pool, and the callers in line for one.

A place that becomes free goes to the caller that has waited longest, and to no one else: the end of
an episode costs the same however many callers wait.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar


class Serving(Protocol):
    """A worker, as far as its places are concerned."""

    name: str
    capacity: int
    """Episodes that it may run at once."""
    running: int
    """Episodes assigned to it now; changed here alone."""


W = TypeVar("W", bound=Serving)
_PER_TURN = 16
"""Places handed over in one turn of the event loop when workers open: to start thousands of
episodes in one turn would stop it.
"""


class FreeSlots(Generic[W]):
    """Hands out the places of each open worker, the least loaded first."""

    def __init__(self) -> None:
        self._open: dict[str, W] = {}
        self._by_load: list[dict[str, W]] = []
        """Open workers with a free place, by the number of their episodes."""
        self._lowest = 0
        """No open worker has fewer episodes."""
        self._line: deque[asyncio.Future[W]] = deque()
        self._serving_line = False
        self._admitting = asyncio.Event()
        self._admitting.set()
        self._deadlines: dict[asyncio.Timeout, float] = {}
        """Deadlines of callers in line; during a pause, the seconds that they have left."""

    @property
    def paused(self) -> bool:
        """Whether no places are handed out, on request."""
        return not self._admitting.is_set()

    def pause(self) -> None:
        """Hand out no place until `resume`; the deadlines of those in line stand still."""
        if not self.paused:
            now = asyncio.get_running_loop().time()
            for timeout in self._deadlines:
                self._deadlines[timeout] = max((timeout.when() or now) - now, 0.0)
                timeout.reschedule(None)
            self._admitting.clear()

    def resume(self) -> None:
        """Hand out places again."""
        if self.paused:
            now = asyncio.get_running_loop().time()
            for timeout, left_s in self._deadlines.items():
                timeout.reschedule(now + left_s)
            self._admitting.set()
            self._serve_line_soon()

    async def admitted(self) -> None:
        """Wait while there is a pause."""
        await self._admitting.wait()

    @asynccontextmanager
    async def deadline(self, seconds: float) -> AsyncIterator[None]:
        """Raise TimeoutError where the block takes longer than `seconds`, pauses not counted."""
        async with asyncio.timeout(None if self.paused else seconds) as timeout:
            self._deadlines[timeout] = seconds
            try:
                yield
            finally:
                del self._deadlines[timeout]

    def open(self, worker: W) -> None:
        """Hand out the free places of `worker`."""
        self._open[worker.name] = worker
        self._list(worker)
        if self._line:
            self._serve_line_soon()

    def close(self, worker: W) -> None:
        """Hand out no place of `worker` any more."""
        self._unlist(worker)
        self._open.pop(worker.name, None)

    def take(self, prefer: str = "") -> W | None:
        """Take a place on the worker called `prefer` if it has one, else on the least loaded.

        Returns None if there is no place, during a pause, or if others are in line for it.
        """
        if self._line or self.paused:
            return None
        worker = self._open.get(prefer)
        if worker is None or worker.running >= worker.capacity:
            worker = self._least_loaded()
        if worker is not None:
            self._occupy(worker)
        return worker

    async def wait(self, *, first: bool = False) -> W:
        """Wait in line for a place; `first` is for one who has been at its head before.

        The worker may have been closed since its place was handed over. Raises what `fail` got.
        """
        place: asyncio.Future[W] = asyncio.get_running_loop().create_future()
        if first:
            self._line.appendleft(place)
        else:
            self._line.append(place)
        self._serve_line_soon()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.leave(place.result())
            raise

    def leave(self, worker: W) -> None:
        """Give back a place on `worker`."""
        self._unlist(worker)
        worker.running -= 1
        if worker.name in self._open:
            self._list(worker)
            self._hand_over(worker)

    def fail(self, error: Exception) -> None:
        """Let everyone in line raise `error`."""
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_exception(error)

    def _serve_line_soon(self) -> None:
        if self.paused or self._serving_line:
            return
        if self._least_loaded() is not None:
            self._serving_line = True
            asyncio.get_running_loop().call_soon(self._serve_line)

    def _serve_line(self) -> None:
        self._serving_line = False
        for _ in range(_PER_TURN):
            worker = self._least_loaded()
            if worker is None or not self._hand_over(worker):
                return
        self._serve_line_soon()

    def _hand_over(self, worker: W) -> bool:
        """Give a place of `worker` to the first in line, if there is one and no pause."""
        while self._line and not self.paused:
            place = self._line.popleft()
            if not place.done():  # else its caller was cancelled
                self._occupy(worker)
                place.set_result(worker)
                return True
        return False

    def _occupy(self, worker: W) -> None:
        self._unlist(worker)
        worker.running += 1
        self._list(worker)

    def _least_loaded(self) -> W | None:
        while self._lowest < len(self._by_load):
            for worker in self._by_load[self._lowest].values():
                return worker
            self._lowest += 1
        return None

    def _list(self, worker: W) -> None:
        while len(self._by_load) < worker.capacity:
            self._by_load.append({})
        if worker.running < worker.capacity:
            self._by_load[worker.running][worker.name] = worker
            self._lowest = min(self._lowest, worker.running)

    def _unlist(self, worker: W) -> None:
        if worker.running < min(worker.capacity, len(self._by_load)):
            self._by_load[worker.running].pop(worker.name, None)
