"""CPU throttling of long calls: CPU-bound calls are paused in part while short calls arrive.

If one tool computes without end on two cores, it delays the other calls whatever its priority: by
the memory pages that it requests from the kernel, and, at least on a virtual machine, because a
sleeping process is woken late when a core never goes idle. Only pausing it helps. So a call that
turns out to be CPU-bound is stopped (SIGSTOP) and runs for only a share of each cycle. Cycles are
long, because stopping and continuing processes disturbs the others most.

A call is paused only if it is CPU-bound, short calls are arriving, and fewer than two cores are
free for the server and its clients.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleTiming:
    """What counts as a long, CPU-bound or frequent call, and how long a cycle is."""

    look_s: float = 0.01
    """A call is measured for the first time after this; a call that has ended before is short."""
    longest_look_s: float = 0.64
    """Longest time between two measurements of a call; the time doubles from look to look."""
    cpu_bound: float = 0.25
    """CPU seconds per wall second, between two measurements, from which a call is CPU-bound."""
    cycle_s: float = 0.5
    """One pause and one run of a throttled call."""
    many_calls: int = 25
    """Short calls that must end within one cycle before long ones are paused."""


class CallWatch(Protocol):
    """Is told when the call of a process starts and ends."""

    def call_started(self, process: "ThrottledProcess") -> None: ...

    def call_ended(self, process: "ThrottledProcess") -> None: ...


class ThrottledProcess(Protocol):
    """A process that works on one call at a time."""

    def cpu_s(self) -> float | None:
        """Return the CPU seconds of the process so far; None if they cannot be measured."""

    def pause(self) -> None:
        """Stop the process until `resume`."""

    def resume(self) -> None:
        """Let the process continue."""


@dataclass(slots=True)
class _Measurement:
    """CPU seconds of a running call, when they were measured, and when to measure again."""

    cpu_s: float
    at: float
    due: float


class CpuThrottle:
    """Keeps track of the running calls and pauses those that are long and CPU-bound.

    A call passes through up to three stages: new (not measured yet), watched (measured, not
    CPU-bound so far) and long. Of the long calls, the first `spare_cores` run unthrottled; the
    others run for `share` of the time while short calls arrive.
    """

    def __init__(
        self, spare_cores: int, share: float, timing: ThrottleTiming | None = None
    ) -> None:
        self._spare = spare_cores
        self._share = share
        self._timing = timing or ThrottleTiming()
        self._loop = asyncio.get_running_loop()
        self._new: dict[ThrottledProcess, float] = {}
        """When each new call started, the oldest first."""
        self._watched: dict[ThrottledProcess, _Measurement] = {}
        self._long: dict[ThrottledProcess, None] = {}
        self._paused: dict[ThrottledProcess, None] = {}
        self._short_ends: deque[float] = deque(maxlen=self._timing.many_calls)
        """When the latest short calls ended."""
        self._looking = self._cycling = False
        self.calls_throttled = 0
        """Running calls that are given only a share of the time."""

    def call_started(self, process: ThrottledProcess) -> None:
        """Register a call."""
        self._new[process] = self._loop.time()
        if not self._looking:
            self._looking = True
            self._loop.call_later(self._timing.look_s, self._look)

    def call_ended(self, process: ThrottledProcess) -> None:
        """Remove a call, however it ended."""
        if self._new.pop(process, None) is not None:
            self._short_ends.append(self._loop.time())
            return
        self._watched.pop(process, None)
        self._long.pop(process, None)
        if process in self._paused:  # it was paused after it had sent its answer
            del self._paused[process]
            process.resume()

    def _look(self) -> None:
        """Measure the calls that are due, to tell those that compute from those that wait.

        One timer serves all calls: a timer per call would cost more than most calls.
        """
        now, look_s = self._loop.time(), self._timing.look_s
        for process, last in list(self._watched.items()):
            if last.due <= now:
                del self._watched[process]
                self._measure_again(process, last, now)
        for process, started in list(self._new.items()):
            if now - started < look_s:
                break  # the rest is younger
            del self._new[process]
            self._watch(process, process.cpu_s(), now, look_s)
        if len(self._long) > self._spare and not self._cycling and self._share < 1:
            self._start_cycle()
        self._looking = bool(self._new or self._watched)
        if self._looking:
            self._loop.call_later(look_s, self._look)

    def _measure_again(self, process: ThrottledProcess, last: _Measurement, now: float) -> None:
        cpu_s = process.cpu_s()
        if cpu_s is not None and cpu_s - last.cpu_s >= self._timing.cpu_bound * (now - last.at):
            self._long[process] = None
        else:
            wait_s = min(2 * (last.due - last.at), self._timing.longest_look_s)
            self._watch(process, cpu_s, now, wait_s)

    def _watch(
        self, process: ThrottledProcess, cpu_s: float | None, now: float, wait_s: float
    ) -> None:
        """Measure again after `wait_s`, unless the process cannot be measured."""
        if cpu_s is not None:
            self._watched[process] = _Measurement(cpu_s, now, now + wait_s)

    def _start_cycle(self) -> None:
        """Pause the long calls for which no core is spare, if many short calls ended lately."""
        throttled = list(self._long)[self._spare :]
        self._cycling, self.calls_throttled = bool(throttled), 0
        if not self._cycling:
            return
        cycle_s, ends = self._timing.cycle_s, self._short_ends
        if len(ends) == ends.maxlen and self._loop.time() - ends[0] <= cycle_s:
            self.calls_throttled = len(throttled)
            for process in throttled:
                self._paused[process] = None
                process.pause()
        self._loop.call_later(cycle_s * (1 - self._share), self._resume_paused)

    def _resume_paused(self) -> None:
        """Let the paused calls run for the rest of the cycle, then start the next one."""
        for process in self._paused:
            process.resume()
        self._paused.clear()
        self._loop.call_later(self._timing.cycle_s * self._share, self._start_cycle)
