"""Checkpoints on request: between two steps at once, else when the present step has ended."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class RequestedCheckpoints:
    """Takes checkpoints that somebody asks for, while the learner has nothing else to do.

    It has nothing to do while the next groups are awaited. The checkpoint of a step is the same
    whether it is taken then or at the end of the step.
    """

    def __init__(self, save: Callable[[int], Awaitable[None]], step: int) -> None:
        """`save` writes the checkpoint of a step; `step` is the last one that has ended, of which
        there is a checkpoint. Steps count from 1.
        """
        self._save = save
        self.saved = self._ended = step
        self._between = False
        self._asked = asyncio.Event()

    @property
    def between_steps(self) -> bool:
        """Whether a checkpoint can be taken at once."""
        return self._between and self._ended > 0

    def request(self) -> int:
        """Ask for a checkpoint, and return the step that it will be of."""
        step = self._ended if self.between_steps else self._ended + 1
        if step > self.saved:
            self._asked.set()
        return step

    def note(self, step: int) -> None:
        """Note that the checkpoint of `step` was written."""
        self.saved = step

    async def while_waiting(self, step: int, groups: Coroutine[Any, Any, T]) -> T:
        """Return the groups of `step`, and take the checkpoint of the step before if that is asked
        for meanwhile. Raises what either raises.
        """
        self._ended, self._between = step - 1, True
        waiting = asyncio.create_task(groups)
        try:
            while not waiting.done():
                await self._first_of(waiting)
                if self._asked.is_set() and self._ended:
                    self._asked.clear()
                    if self.saved < self._ended:
                        await self._save(self._ended)
                        self.saved = self._ended
            return await waiting
        finally:
            self._between = False
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def _first_of(self, waiting: "asyncio.Task[T]") -> None:
        """Wait until the groups are there or a checkpoint of an ended step is asked for."""
        if not self._ended:
            await asyncio.wait([waiting])
            return
        asked = asyncio.create_task(self._asked.wait())
        try:
            await asyncio.wait([waiting, asked], return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
