"""One small actor per node that looks at processes there, and ends those that cannot end alone."""

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.fleet.health.stacks import request_stacks
from cluster.fleet.health.vitals import GONE, Sign, Vital, vital_of

logger = logging.getLogger("trialrun")

_LOOK_S = 2.0
"""Deadline of one look; a node that takes longer counts as not seen."""
_START_S = 60.0
"""Deadline of the first look at a node, which starts the actor."""


class GuardActor:
    """Ray actor on one node."""

    def __init__(self) -> None:
        self._started: dict[int, int] = {}
        """When the processes started that were looked at, by number."""

    def look(self, pids: Sequence[int]) -> list[Vital]:
        """Return the signs of life of `pids`; a later process of the same number is another one."""
        found = [vital_of(pid) for pid in pids]
        for pid, vital in zip(pids, found, strict=True):
            if vital.sign is not Sign.GONE:
                self._started.setdefault(pid, vital.started)
        return [
            vital if self._started.get(pid) == vital.started else GONE
            for pid, vital in zip(pids, found, strict=True)
        ]

    def end(self, pid: int) -> None:
        """Kill a process that was looked at before: a stopped one does not end when Ray asks.

        One that is not stopped writes its stacks to its log first.
        """
        vital = vital_of(pid)
        if vital.sign is not Sign.GONE and self._started.get(pid) == vital.started:
            if vital.sign is Sign.ALIVE:
                request_stacks(pid)
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._started.pop(pid, None)


class NodeGuards:
    """The guards of all nodes on which processes are watched; lives in the driver.

    All objects of this class in one driver share the actors, which end with the driver.
    """

    def __init__(self) -> None:
        self._actors: dict[str, Any] = {}
        self._ready: set[str] = set()

    async def look(self, node: str, pids: Sequence[int]) -> list[Vital] | None:
        """Return the signs of life of `pids` on `node`; None if nobody there answers in time.

        The first call for a node starts its guard, which takes a second or two.
        """
        limit_s = _LOOK_S if node in self._ready else _START_S
        try:
            async with asyncio.timeout(limit_s):
                found = await self._actor(node).look.remote(list(pids))
        except (RayError, TimeoutError, ValueError) as error:
            logger.debug("the guard of node %s does not answer: %r", node, error)
            self._actors.pop(node, None)
            return None
        self._ready.add(node)
        return found

    async def end(self, node: str, pid: int) -> None:
        """Kill a process that was looked at before, if its node can be reached."""
        with suppress(RayError, TimeoutError, ValueError):
            async with asyncio.timeout(_LOOK_S):
                await self._actor(node).end.remote(pid)

    def _actor(self, node: str) -> Any:
        if node not in self._actors:
            remote: Any = ray.remote(GuardActor)
            self._actors[node] = remote.options(
                name=f"trialrun-guard-{node}",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote()
        return self._actors[node]
