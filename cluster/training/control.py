"""Requests to a running job: found in its run directory, carried out, and answered."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from cluster.fleet.pool_worker import Worker, WorkerState
from cluster.lifecycle.retention import checkpoint_path
from cluster.progress import Progress
from cluster.training.requested_checkpoints import RequestedCheckpoints
from rollout.store.control import (
    MAX_WORKERS,
    CheckpointRequest,
    ControlEvent,
    PauseRequest,
    ResumeRequest,
    ScaleByRequest,
    ScaleRequest,
    StopRequest,
    is_paused,
    take_requests,
)
from rollout.store.run_directory import RunDirectory

logger = logging.getLogger("trialrun")

_POLL_S = 1.0


class Places(Protocol):
    """The part of a pool's places that requests use."""

    @property
    def paused(self) -> bool: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Steerable(Protocol):
    """The part of a pool that requests use."""

    @property
    def places(self) -> Places: ...

    @property
    def workers(self) -> Sequence[Worker]: ...

    @property
    def groups(self) -> Mapping[str, int]:
        """Target number of workers of each group."""
        ...

    def resize(self, desired: int, group: str, *, abort: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request led to."""

    note: str = ""
    refused: str = ""
    workers: int | None = None
    effect: Callable[[], str] | None = None
    """Returns in words that the request has taken effect, empty until then; None at once."""


@dataclass(frozen=True, slots=True)
class Controls:
    """What requests act on."""

    run: RunDirectory
    pool: Steerable
    room: Callable[[str], int]
    """Number of further workers of a group that the cluster has room for now."""
    checkpoints: RequestedCheckpoints
    stop: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    """Ends the job in order, as SIGTERM does. The signal goes to the process: one that a thread
    raises for itself does not wake a main thread that waits.
    """
    waiting: list[tuple[ControlEvent, Callable[[], str]]] = field(default_factory=list)
    """Answers to accepted requests that have not taken effect, and their `effect`."""

    def begin(self) -> None:
        """Note that a pause of an earlier process is over."""
        if is_paused(self.run.layout) and not self.pool.places.paused:
            note = "the job was started again, without the pause"
            event = ControlEvent(at=time.time(), actor="trialrun", request=ResumeRequest())
            answer = {"request_id": "start", "note": note}
            self.run.record_control(event.model_copy(update=answer))

    def answer(self, progress: Progress) -> None:
        """Do what was asked since the last time; every request gets an answer in the journal."""
        for request_id, event in take_requests(self.run.layout):
            event = event or ControlEvent(at=0.0, actor="unknown")
            given = self._do(event)
            changes = {
                "at": time.time(),
                "request_id": request_id,
                "refused": given.refused,
                "note": given.note,
                "workers": given.workers,
                "pending": given.effect is not None,
            }
            answered = event.model_copy(update=changes)
            self.run.record_control(answered)
            shown = event.request.describe() if event.request else "an unreadable request"
            outcome = f"refused: {given.refused}" if given.refused else given.note or "done"
            progress.say(f"{event.actor} requested: {shown} ({outcome})")
            if given.effect is not None:
                self.waiting.append((answered, given.effect))
            if isinstance(event.request, StopRequest):
                self.stop()
        self.note_effects(progress)

    def note_effects(self, progress: Progress) -> None:
        """Record which accepted requests have taken effect since the last time."""
        for answered, effect in [*self.waiting]:
            if note := effect():
                self.waiting.remove((answered, effect))
                changes = {"at": time.time(), "note": note, "pending": False, "completed": True}
                self.run.record_control(answered.model_copy(update=changes))
                request = answered.request
                progress.say(f"{request.describe() if request else 'request'}: {note}")

    def _do(self, event: ControlEvent) -> Answer:
        match event.request:
            case None:
                expected = 'expected a request such as {"kind": "scale", "workers": 2}, found none'
                return Answer(refused=expected)
            case StopRequest():
                return Answer(note="the job ends now; finished work is kept")
            case PauseRequest():
                return self._pause()
            case ResumeRequest():
                was = self.pool.places.paused
                self.pool.places.resume()
                return Answer(note="episodes start again" if was else "there was no pause")
            case CheckpointRequest():
                return self._checkpoint()
            case ScaleRequest() | ScaleByRequest() as request:
                return self._scale(request)

    def _pause(self) -> Answer:
        self.pool.places.pause()
        running = self._running()
        if not running:
            return Answer(note="no episode runs, and none starts")
        return Answer(
            note=f"no episode starts; {running} that run are finished first", effect=self._paused
        )

    def _paused(self) -> str:
        if not self.pool.places.paused:
            return "resumed before every episode had ended"
        return "" if self._running() else "every episode has ended, and none starts"

    def _running(self) -> int:
        return sum(worker.running for worker in self.pool.workers)

    def _checkpoint(self) -> Answer:
        step = self.checkpoints.request()
        path = checkpoint_path(self.run.layout.checkpoints, step)

        def effect() -> str:
            return f"it is in {path}" if self.checkpoints.saved >= step else ""

        if effect():
            return Answer(note=f"the checkpoint of step {step} is there already")
        when = "now" if self.checkpoints.between_steps else "when the step has ended"
        return Answer(note=f"the checkpoint of step {step} is taken {when}", effect=effect)

    def _scale(self, request: ScaleRequest | ScaleByRequest) -> Answer:
        wanted = self._wanted(request)
        if fault := self._fault(request, wanted):
            return Answer(refused=fault)
        note = self._resize(request, wanted)

        def effect() -> str:
            if self.pool.groups[request.group] != wanted:
                return "another request came before it had taken effect"
            states = [w.state for w in self.pool.workers if w.group == request.group]
            serving = states.count(WorkerState.HEALTHY) + states.count(WorkerState.STALE)
            if not serving == len(states) == wanted:
                return ""
            return "1 worker serves" if wanted == 1 else f"{wanted} workers serve"

        return Answer(note=note, workers=wanted, effect=effect)

    def _wanted(self, request: ScaleRequest | ScaleByRequest) -> int:
        """Return the target number of workers that `request` means."""
        if isinstance(request, ScaleByRequest):
            return self.pool.groups.get(request.group, 0) + request.change
        return request.workers

    def _fault(self, request: ScaleRequest | ScaleByRequest, wanted: int) -> str:
        """Return why the request is refused, empty if it is not."""
        groups = self.pool.groups
        if request.group not in groups:
            return f"expected a group of workers ({', '.join(groups)}), found {request.group!r}"
        others = sum(count for group, count in groups.items() if group != request.group)
        least = 0 if others else 1  # a run without any worker would only wait
        if not least <= wanted <= MAX_WORKERS:
            return f"expected {least} to {MAX_WORKERS} workers, found {wanted}"
        return ""

    def _resize(self, request: ScaleRequest | ScaleByRequest, desired: int) -> str:
        """Resize the pool and return a note for the requester, or an empty string."""
        more, room = desired - self.pool.groups[request.group], self.room(request.group)
        self.pool.resize(desired, request.group, abort=request.abort)
        if more <= room:
            return ""
        return f"the cluster has room for {room} of {more} more; the others wait for room"


@asynccontextmanager
async def controlled(controls: Controls, progress: Progress) -> AsyncIterator[None]:
    """Answer requests to the job while the block runs."""
    controls.begin()
    polling = asyncio.create_task(_keep_polling(controls, progress))
    try:
        yield
        controls.note_effects(progress)  # such as the checkpoint of the last step
    finally:
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)


async def _keep_polling(controls: Controls, progress: Progress) -> None:
    while True:
        try:
            controls.answer(progress)
        except Exception as error:  # a bad request must not end the run
            logger.warning("a request could not be answered: %r", error)
        await asyncio.sleep(_POLL_S)
