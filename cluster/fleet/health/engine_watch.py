"""Notices on a worker's own node that the processes of its engine died or are frozen."""

import asyncio
from collections.abc import Sequence
from math import inf

from cluster.fleet.health.heartbeat import TURN_S, NoAnswer, Patience, await_answer
from cluster.fleet.health.vitals import Sign, Vital, descendants, vital_of
from envs.errors import EngineError
from rollout.engine import WatchedEngine

_EVERY_S = 1.0
_LOOKS = 3
"""Looks in a row, `TURN_S` apart, at which a process must be stopped: a signal may be undone."""
_PATIENCE = Patience(answer_s=3.0, still_s=2.0, unseen_s=inf, limit_s=inf)
"""A step of an engine may take minutes; the deadlines of episodes bound it. Whoever computes is
never given up here.
"""


class EngineWatch:
    """Watches an engine until it is closed; `check` raises what was found."""

    def __init__(self, engine: WatchedEngine) -> None:
        self._engine = engine
        self._family: Sequence[int] = ()
        self._found = ""
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Watch from now on; the engine has been started."""
        cores = list(self._engine.process_ids)
        inner = await asyncio.to_thread(
            lambda: [pid for core in cores for pid in descendants(core)]
        )
        self._family = [*cores, *inner]
        self._watching = asyncio.create_task(self._watch(), name="engine-watch")

    async def close(self) -> None:
        """End the watch."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    def check(self) -> None:
        """Raise EngineError if the engine was found to be lost."""
        if self._found:
            raise EngineError(self._found)

    async def _watch(self) -> None:
        while not self._found:
            await asyncio.sleep(_EVERY_S)
            try:
                if stopped := await self._stopped():
                    self._found = f"process {stopped} of the engine is stopped (SIGSTOP)"
                    return
                await await_answer(self._engine.ping(), self._look, _PATIENCE)
            except NoAnswer as error:
                self._found = f"the engine does not answer: {error}"
            except EngineError as error:
                self._found = str(error)

    async def _stopped(self) -> int:
        """Return a process of the engine that is stopped, 0 if none is."""
        stopped = self._family
        for look in range(_LOOKS):
            if look:
                await asyncio.sleep(TURN_S)
            stopped = [pid for pid in stopped if vital_of(pid).sign is Sign.STOPPED]
            if not stopped:
                return 0
        return stopped[0]

    async def _look(self) -> Vital | None:
        """Return one sign for all processes of the engine: it works if one of them does."""
        vitals = [vital_of(pid) for pid in self._family]
        living = [vital for vital in vitals if vital.sign is not Sign.GONE]
        if not living:
            return Vital(sign=Sign.GONE)
        return Vital(
            sign=Sign.ALIVE,
            cpu_s=sum(vital.cpu_s for vital in living),
            at_work=any(vital.at_work for vital in living),
        )
