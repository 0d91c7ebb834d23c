"""Processes between calls: a tool that has answered must not go on computing.

A tool can send its answer by itself and go on. No time limit of a call would stop it then, and no
throttle. So a process whose call has ended is looked at a few times, ever more rarely. One that
computes is stopped (SIGSTOP) until its next call. At the last look every process is stopped, so
that a tool which sleeps first gains nothing. A call that follows soon costs two entries in a table.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from envs.sandbox.cpu_throttle import ThrottledProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class RestTiming:
    """When a process is looked at, in seconds after its call, and what counts as computing."""

    looks_s: tuple[float, ...] = (0.01, 0.03, 0.2, 1.0)
    """The first look only reads its clock, the last one stops it anyway."""
    computes_s: float = 0.001
    """CPU seconds since the first look from which a process computes. An honest one has freed what
    its call left by then, and waits.
    """


@dataclass(frozen=True, slots=True)
class _Rest:
    """Since when a process rests, and its CPU seconds at the first look."""

    since: float
    cpu_s: float = 0.0


class RestWatch:
    """Looks at the processes whose calls have ended.

    `self._waiting[n]` has those that wait for look `n`, the longest-resting first. One timer serves
    all.
    """

    def __init__(self, timing: RestTiming | None = None) -> None:
        self._timing = timing or RestTiming()
        self._loop = asyncio.get_running_loop()
        self._waiting: list[OrderedDict[ThrottledProcess, _Rest]] = [
            OrderedDict() for _ in self._timing.looks_s
        ]
        self._looking = False
        self.stopped = 0
        """How often a process was stopped because it computed."""

    def call_started(self, process: ThrottledProcess) -> None:
        """Look no more; who starts the call also resumes a process that was paused."""
        for waiting in self._waiting:
            if waiting.pop(process, None):
                return

    def call_ended(self, process: ThrottledProcess) -> None:
        """Look at the process from now on."""
        self._waiting[0][process] = _Rest(self._loop.time())
        if not self._looking:
            self._looking = True
            self._loop.call_later(self._timing.looks_s[0], self._look)

    def _look(self) -> None:
        now = self._loop.time()
        # the last look first: a process is looked at once, however late this timer is
        for number in reversed(range(len(self._waiting))):
            waiting, due_s = self._waiting[number], self._timing.looks_s[number]
            while waiting:
                process, rest = next(iter(waiting.items()))
                if now - rest.since < due_s:
                    break
                del waiting[process]
                self._examine(process, rest, number)
        dues = [
            next(iter(waiting.values())).since + due_s
            for waiting, due_s in zip(self._waiting, self._timing.looks_s, strict=True)
            if waiting
        ]
        self._looking = bool(dues)
        if dues:
            self._loop.call_later(max(min(dues) - now, self._timing.looks_s[0]), self._look)

    def _examine(self, process: ThrottledProcess, rest: _Rest, number: int) -> None:
        cpu_s = process.cpu_s()
        if cpu_s is None:  # it has ended
            return
        computes = number > 0 and cpu_s - rest.cpu_s >= self._timing.computes_s
        self.stopped += computes
        if computes or number == len(self._waiting) - 1:
            process.pause()
        else:
            first_s = rest.cpu_s if number else cpu_s
            self._waiting[number + 1][process] = _Rest(rest.since, first_s)
