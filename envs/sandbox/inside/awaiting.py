"""An event loop for `async` tools. It waits without the sockets that a sandbox refuses."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any


class _Clock:
    """A selector without anything to select: it only waits."""

    def select(self, timeout: float | None) -> list[object]:
        while timeout is None:
            time.sleep(1)  # nothing can come any more: the limit of the call ends this
        if timeout > 0:
            time.sleep(timeout)
        return []


class SleepingLoop(asyncio.BaseEventLoop):
    """Runs coroutines, tasks and timers; it has no network, no processes and no threads."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Clock()

    def _process_events(self, event_list: list[object]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nothing else runs that could have to wake this loop."""


class Awaiter:
    """Runs what `async` tools return, in one loop per session, so that locks and tasks live on."""

    def __init__(self) -> None:
        self._loop: SleepingLoop | None = None

    def result(self, coroutine: Coroutine[Any, Any, object]) -> object:
        """Return what `coroutine` returns. Raises what it raises."""
        if self._loop is None:
            self._loop = SleepingLoop()
            asyncio.set_event_loop(self._loop)
        return self._loop.run_until_complete(coroutine)

    async def _all(self, items: Any) -> list[object]:
        return [item async for item in items]

    def items(self, generator: Any) -> list[object]:
        """Return all that an asynchronous generator yields."""
        found = self.result(self._all(generator))
        assert isinstance(found, list)
        return found
