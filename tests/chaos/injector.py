"""Injects the faults of a schedule into the run of this process, from a thread.

A fault waits until its state is seen, never for a time. What was hit is checked to be dead or
stopped, and written to the journal: the witness. Then the injector looks how long it takes until
the run has noticed the fault, and until it works as before.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from cluster.fleet.pool import Worker, WorkerState
from tests.chaos.disks import Disk
from tests.chaos.faults import Blow, Fault, Target
from tests.chaos.journal import Journal
from tests.chaos.processes import children, fork_server_of, is_stopped, tool_server_of
from tests.chaos.scene import Aim, Scene, replaced
from tests.waiting import lives, wait_until

_POLL_S, _QUICK_POLL_S = 0.05, 0.004
"""The quick one is for states that last for a tenth of a second; it costs CPU time."""
_QUICK_STATES = {"loading weights", "learning", "saving a checkpoint", "publishing weights"}
_WITHOUT_WORKERS = (Target.LEARNER, Target.DRIVER, Target.DISK)
_AT_ONCE = 5
"""Faults that may be felt at once, where none of them wants to be alone."""
_STANDSTILL_S = 8
"""Seconds for which a driver is stopped."""
_SEEN_WITHIN_S = 30.0
"""Seconds for the system to end or stop a process."""


@dataclass(slots=True)
class Felt:
    """A fault that was injected and is not over."""

    number: int
    fault: Fault
    noticed: Callable[[], bool]
    over: Callable[[], bool]
    deadline: float
    worker: Worker | None = None
    was_noticed: bool = False
    over_at: float = 0.0


class Injector:
    """Works through `schedule` from the first fault that the journal does not have."""

    def __init__(
        self,
        scene: Scene,
        schedule: Sequence[Fault],
        journal: Journal,
        disk: Disk | None,
        last_step: int,
    ) -> None:
        """Inject nothing from step `last_step` on: the run would end before it is over."""
        self._scene, self._schedule, self._journal = scene, schedule, journal
        self._disk, self._last_step = disk, last_step
        self._felt: list[Felt] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="injector", daemon=True)

    def start(self) -> None:
        self._resume()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(60)

    @property
    def is_done(self) -> bool:
        """Whether every fault was injected and is over."""
        return len(self._journal.of("over")) == len(self._schedule)

    def _work(self) -> None:
        next_fault = len(self._journal.of("injected"))
        looked_at, pause_s = 0.0, _POLL_S
        while not self._stopping.wait(pause_s):
            if time.monotonic() - looked_at > _POLL_S:
                self._look_at_felt()
                looked_at = time.monotonic()
            pause_s = _POLL_S
            if next_fault == len(self._schedule):
                continue
            fault = self._schedule[next_fault]
            if self._felt and self._waits(next_fault, fault):
                continue
            if self._scene.step >= self._last_step or not self._ready(fault):
                continue
            if fault.state in _QUICK_STATES:
                pause_s = _QUICK_POLL_S
            aim = self._scene.aim(fault, [felt.worker for felt in self._felt if felt.worker])
            if aim is not None and self._hit(next_fault, fault, aim):
                next_fault += 1

    def _waits(self, number: int, fault: Fault) -> bool:
        """Whether `fault` waits until those before it are over."""
        # Who hits a worker that starts needs the fault before it, and no other.
        if fault.leads or (fault.alone and fault.state != "starting"):
            return True
        return any(felt.fault.alone or felt.number < number - _AT_ONCE for felt in self._felt)

    def _ready(self, fault: Fault) -> bool:
        """Whether the run is well enough for `fault`: what hits a worker, or a node with workers,
        meets a complete pool, unless it follows another fault; the rest, one that steps.
        """
        if not self._scene.steps or (not self._scene.healthy and fault.state != "loading weights"):
            return False
        whole = self._scene.healthy == self._scene.pool.desired
        anytime = fault.target in _WITHOUT_WORKERS or fault.state == "loading weights"
        return bool(self._felt) or whole or anytime

    # To hit

    def _hit(self, number: int, fault: Fault, aim: Aim) -> bool:
        """Inject the fault; return whether it happened. A driver may not return from here."""
        steps = self._scene.steps
        pid = aim.process.pid
        self._journal.write(number, "aims", pid=pid, victim=aim.victim, saw=aim.saw, steps=steps)
        felt = self._felt_of(number, fault, aim)
        match fault.target, fault.blow:
            case Target.DISK, blow:
                assert self._disk is not None
                saw = self._disk.fill() if blow is Blow.FULL else self._disk.slow_down()
            case Target.DRIVER, blow:
                self._journal.write(
                    number, "injected", pid=pid, victim=aim.victim, saw=aim.saw, steps=steps
                )
                self._hit_myself(blow)
                self._felt.append(felt)
                return True
            case _, blow:
                saw = _blow(aim.process, blow)
        if not saw:
            return False  # it ended by itself meanwhile: the next one will do
        self._journal.write(
            number, "injected", pid=pid, victim=aim.victim, saw=f"{aim.saw}; {saw}", steps=steps
        )
        self._felt.append(felt)
        return True

    def _hit_myself(self, blow: Blow) -> None:
        if blow is Blow.STOP:
            goes_on = f"sleep {_STANDSTILL_S}; kill -CONT {os.getpid()}"
            subprocess.Popen(["/bin/sh", "-c", goes_on], start_new_session=True)
        os.kill(os.getpid(), getattr(signal, f"SIG{blow.name}"))

    # To see what it does

    def _felt_of(self, number: int, fault: Fault, aim: Aim) -> Felt:
        noticed, over = self._signs(fault, aim)
        deadline = time.monotonic() + fault.within_s
        return Felt(number, fault, noticed, over, deadline, aim.worker)

    def _signs(self, fault: Fault, aim: Aim) -> tuple[Callable[[], bool], Callable[[], bool]]:
        """Return tests of whether the fault was noticed, and whether the run works as before."""
        scene, steps, log = self._scene, self._scene.steps, len(self._scene.log)

        def gone() -> bool:
            # Whether a stopped process is ended at last is looked at after the run.
            return fault.blow is Blow.STOP or not lives(aim.process)

        def all_healthy() -> bool:
            return scene.healthy == scene.pool.desired and gone()

        def stepped() -> bool:
            return scene.steps > steps

        def said(text: str) -> Callable[[], bool]:
            return lambda: text in scene.log[log:]

        match fault.target:
            case Target.WORKER | Target.ENGINE:
                return replaced(scene, aim), all_healthy
            case Target.TOOL_SERVER | Target.FORK_SERVER:
                worker = aim.worker
                assert worker is not None
                loss_line, server = (
                    f"tool server {worker.name}/0 lost",
                    f"tool server {worker.name}.",
                )

                def named() -> bool:
                    new = scene.log[log:]
                    return loss_line in new or (
                        fault.target is Target.FORK_SERVER and server in new
                    )

                return named, self._serves_again(aim)
            case Target.LEARNER:
                return said("the learner was lost"), lambda: stepped() and gone()
            case Target.RAYLET:
                workers = [w for w in scene.pool.workers if w.state is not WorkerState.DEAD]

                def lost() -> bool:
                    found = any(all(o is not w for o in scene.pool.workers) for w in workers)
                    if found and is_stopped(aim.process):
                        aim.process.resume()  # Ray's own way out of it: it ends itself
                    return found

                return lost, lambda: all_healthy() and stepped()
            case Target.DRIVER:
                return said("stood still"), stepped
            case Target.DISK:
                return said("it is slow"), lambda: self._disk_is_well() and stepped()

    def _disk_is_well(self) -> bool:
        """Called once the slow disk was noticed."""
        if self._disk is not None:
            self._disk.speed_up()
        return True

    def _serves_again(self, aim: Aim) -> Callable[[], bool]:
        worker = aim.worker
        assert worker is not None

        def serves() -> bool:
            client_pid = getattr(worker.client, "pid", 0)
            if not psutil.pid_exists(client_pid) or worker.state is WorkerState.DEAD:
                return False
            server = tool_server_of(psutil.Process(client_pid))
            forker = None if server is None else fork_server_of(server)
            return (
                forker is not None
                and not lives(aim.process)
                and bool(children(forker, "", recursive=True))
            )

        return serves

    def _look_at_felt(self) -> None:
        for felt in list(self._felt):
            if not felt.was_noticed and felt.noticed():
                felt.was_noticed = True
                self._journal.write(felt.number, "noticed", steps=self._scene.steps)
            # A server is replaced before its loss is in the log of the driver.
            server = felt.fault.target in (Target.TOOL_SERVER, Target.FORK_SERVER)
            if (felt.was_noticed or server) and not felt.over_at and felt.over():
                felt.over_at = time.time()
            if felt.was_noticed and felt.over_at:
                steps = self._scene.steps
                self._journal.write(felt.number, "over", at=felt.over_at, steps=steps)
                self._felt.remove(felt)
            elif time.monotonic() > felt.deadline:
                states = [f"{w.name} {w.state}" for w in self._scene.pool.workers]
                self._journal.write(felt.number, "failed", saw=f"not over in time: {states}")
                self._felt.remove(felt)

    def _resume(self) -> None:
        """Go on after the death of the driver: the faults that caused it are still felt."""
        over = self._journal.of("over") | self._journal.of("failed")
        for number, line in self._journal.of("injected").items():
            if number in over:
                continue
            fault, steps = self._schedule[number], line.steps
            self._felt.append(
                Felt(
                    number,
                    fault,
                    lambda: True,
                    lambda steps=steps: self._scene.steps > steps,
                    time.monotonic() + fault.within_s,
                    was_noticed=number in self._journal.of("noticed"),
                )
            )


def _blow(process: psutil.Process, blow: Blow) -> str:
    """Send the signal; return the proof of its effect, empty if the process was gone before."""
    try:
        process.send_signal(getattr(signal, f"SIG{blow.name}"))
    except psutil.NoSuchProcess:
        return ""
    if blow is Blow.STOP:
        return "stopped" if wait_until(lambda: is_stopped(process), _SEEN_WITHIN_S, 0.005) else ""
    return "dead" if wait_until(lambda: not lives(process), _SEEN_WITHIN_S, 0.005) else ""
