"""Requests to a running job: found in its run directory, carried out, and answered."""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from cluster.progress import Progress
from rollout.store.control import (
    MAX_WORKERS,
    ControlEvent,
    ScaleByRequest,
    ScaleRequest,
    StopRequest,
    take_requests,
)
from rollout.store.run_directory import RunDirectory

logger = logging.getLogger("trialrun")

_POLL_S = 1.0


class Resizable(Protocol):
    """The part of a pool that requests use."""

    @property
    def groups(self) -> Mapping[str, int]:
        """Target number of workers of each group."""
        ...

    def resize(self, desired: int, group: str, *, abort: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Controls:
    """What requests act on."""

    run: RunDirectory
    pool: Resizable
    room: Callable[[str], int]
    """Number of further workers of a group that the cluster has room for now."""
    stop: Callable[[], None] = lambda: signal.raise_signal(signal.SIGTERM)
    """Ends the job in order, as SIGTERM does."""

    def answer(self, progress: Progress) -> None:
        """Do what was asked since the last time; every request gets an answer in the journal."""
        for request_id, event in take_requests(self.run.layout):
            event = event or ControlEvent(at=0.0, actor="unknown")
            request, refused, note = event.request, "", ""
            wanted: int | None = None
            if request is None:
                refused = 'expected a request such as {"kind": "scale", "workers": 2}, found none'
            elif isinstance(request, StopRequest):
                note = "the job ends now; finished work is kept"
            else:
                wanted = self._wanted(request)
                refused = self._fault(request, wanted)
                note = refused or self._resize(request, wanted)
            answer = {
                "at": time.time(),
                "request_id": request_id,
                "refused": refused,
                "note": "" if refused else note,
                "workers": None if refused else wanted,
            }
            self.run.record_control(event.model_copy(update=answer))
            shown = "an unreadable request" if request is None else request.describe()
            outcome = f"refused: {refused}" if refused else note or "done"
            progress.say(f"{event.actor} requested: {shown} ({outcome})")
            if isinstance(request, StopRequest):
                self.stop()

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
    polling = asyncio.create_task(_keep_polling(controls, progress))
    try:
        yield
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
