"""The idle sweep: closes sessions that were not used for a while."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

_SWEEPS_PER_LIMIT = 4


class IdleSweep:
    """Closes sessions that were unused for `idle_s` seconds, until it is stopped.

    `last_used` returns, by session id, when each session that is not in use now was last used, in
    seconds of the event loop's clock; a session that is in use is left out. `close` ends the
    sessions with the given ids. The sweep runs four times per idle limit, so a session is closed
    at most a quarter of the limit late.
    """

    def __init__(
        self,
        idle_s: float,
        last_used: Callable[[], Mapping[str, float]],
        close: Callable[[Sequence[str]], object],
    ) -> None:
        self._idle_s = idle_s
        self._last_used = last_used
        self._close = close
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Sweep from now on, in a task of the running event loop."""
        self._task = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Stop sweeping; harmless if it was not started."""
        task, self._task = self._task, None
        if task:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _sweep(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._idle_s / _SWEEPS_PER_LIMIT)
            oldest = now() - self._idle_s
            self._close([name for name, used in self._last_used().items() if used < oldest])
