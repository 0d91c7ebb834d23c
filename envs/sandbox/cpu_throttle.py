"""Short calls go first: who computes for long gets turns while many short calls come in.

Where one tool computes without end on two cores, the other calls feel it whatever its priority: by
the pages that it asks of the kernel, and, on a virtual machine at least, because what sleeps is
woken late beside a core that never rests. Only its standing still helps. So calls that turn out to
compute are stopped (SIGSTOP), and go on for a share of each cycle. Cycles are long: what hurts most
is the change.

Nobody is stopped who only waits, where few short calls come in, or while it leaves the server and
its clients two cores.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol

_LOOK_S, _LONGEST_LOOK_S = 0.01, 0.64
"""A call under way for so long is looked at: at first, and after more and more time."""
_COMPUTES = 0.25
"""CPU seconds per second, between two looks, that tell that a call computes."""
_CYCLE_S = 0.5
_MANY = 25
"""Short calls that end within a cycle's time before long ones give way."""


class Worker(Protocol):
    """A process that works on one call at a time."""

    def cpu_s(self) -> float | None:
        """Return the CPU seconds of the process so far, None where nobody knows."""

    def hold(self) -> None:
        """Stop the process until it is told to go on."""

    def go_on(self) -> None:
        """Let the process go on."""


@dataclass(slots=True)
class _Look:
    """What was seen of a call under way, when, and when to look again."""

    cpu_s: float
    at: float
    due: float


class ShortCallsFirst:
    """Which calls are under way, and who of them has to wait.

    Of the calls that compute for long, the first `spare_cores` run free; the others run for `share`
    of the time while short calls come in.
    """

    def __init__(self, spare_cores: int, share: float) -> None:
        self._spare = spare_cores
        self._share = share
        self._loop = asyncio.get_running_loop()
        self._young: dict[Worker, float] = {}
        """When each call began, the oldest first."""
        self._watched: dict[Worker, _Look] = {}
        self._long: dict[Worker, None] = {}
        self._held: dict[Worker, None] = {}
        self._ends: deque[float] = deque(maxlen=_MANY)
        """When the last short calls ended."""
        self._looking = self._cycling = False
        self.in_turns = 0
        """Calls under way that run for a share of the time."""

    def began(self, worker: Worker) -> None:
        """Take note of a call."""
        self._young[worker] = self._loop.time()
        if not self._looking:
            self._looking = True
            self._loop.call_later(_LOOK_S, self._look)

    def ended(self, worker: Worker) -> None:
        """Take note of a call's end, however it ended."""
        if self._young.pop(worker, None) is not None:
            self._ends.append(self._loop.time())
            return
        self._watched.pop(worker, None)
        self._long.pop(worker, None)
        if worker in self._held:  # its answer was on its way already
            del self._held[worker]
            worker.go_on()

    def _look(self) -> None:
        """Tell calls that compute from those that wait."""
        now = self._loop.time()
        for worker, look in list(self._watched.items()):
            if look.due <= now:
                del self._watched[worker]
                self._look_again(worker, look, now)
        for worker, since in list(self._young.items()):
            if now - since < _LOOK_S:
                break
            del self._young[worker]
            self._watch(worker, worker.cpu_s(), now, _LOOK_S)
        if len(self._long) > self._spare and not self._cycling and self._share < 1:
            self._start_cycle()
        self._looking = bool(self._young or self._watched)
        if self._looking:
            self._loop.call_later(_LOOK_S, self._look)

    def _look_again(self, worker: Worker, look: _Look, now: float) -> None:
        cpu_s = worker.cpu_s()
        if cpu_s is not None and cpu_s - look.cpu_s >= _COMPUTES * (now - look.at):
            self._long[worker] = None
        else:
            self._watch(worker, cpu_s, now, min(2 * (look.due - look.at), _LONGEST_LOOK_S))

    def _watch(self, worker: Worker, cpu_s: float | None, now: float, wait_s: float) -> None:
        """Look again after `wait_s`, but for a process that nobody can measure."""
        if cpu_s is not None:
            self._watched[worker] = _Look(cpu_s, now, now + wait_s)

    def _start_cycle(self) -> None:
        """Hold whoever computes and has no core to spare, if short calls came in."""
        waiting = list(self._long)[self._spare :]
        self._cycling, self.in_turns = bool(waiting), 0
        if not self._cycling:
            return
        if len(self._ends) == _MANY and self._loop.time() - self._ends[0] <= _CYCLE_S:
            self.in_turns = len(waiting)
            for worker in waiting:
                self._held[worker] = None
                worker.hold()
        self._loop.call_later(_CYCLE_S * (1 - self._share), self._give_turns)

    def _give_turns(self) -> None:
        for worker in self._held:
            worker.go_on()
        self._held.clear()
        self._loop.call_later(_CYCLE_S * self._share, self._start_cycle)
