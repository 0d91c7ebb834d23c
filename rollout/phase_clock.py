"""Whose time passes in a turn: the policy's, while tools run that it called, or the world's.

A policy can call a tool that hangs, as often as its budget allows. If that time counted as the
infrastructure's, the episode would end without a reward and be run again: a second draw for who
likes to hang.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from types import TracebackType

from envs.tools import ToolAnswer


def tool_seconds(answers: Sequence[ToolAnswer]) -> float:
    """Return the seconds that tools took for `answers`; waits for servers are not in them."""
    return sum(answer.seconds for answer in answers)


class TurnClock:
    """Ends a turn with TimeoutError when all but the policy's tools took more than `limit_s`.

    While tools run it stands still: their service has a deadline of its own. What it took longer
    than the tools themselves is the world's time.
    """

    def __init__(self, limit_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._deadline = self._began + max(limit_s, 0.0)
        self._timeout = asyncio.timeout_at(self._deadline)
        self.tools_s = 0.0
        """Seconds of the tools that the policy called."""

    async def __aenter__(self) -> "TurnClock":
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._timeout.__aexit__(kind, error, trace)

    @property
    def world_s(self) -> float:
        """Seconds of everything else so far."""
        return self._loop.time() - self._began - self.tools_s

    async def tools(self, answers: Awaitable[list[ToolAnswer]]) -> list[ToolAnswer]:
        """Await the answers of tools that the policy called."""
        began = self._loop.time()
        self._timeout.reschedule(None)
        found = await answers
        now = self._loop.time()
        took = min(tool_seconds(found), now - began)
        self.tools_s += took
        self._deadline += took
        if now > self._deadline:  # a timeout would only come once the turn waits again
            raise TimeoutError
        self._timeout.reschedule(self._deadline)
        return found
