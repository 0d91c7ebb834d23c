"""Requests to a running job: found in its run directory, carried out, and answered."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from cluster.progress import Progress
from rollout.store.control import SCALE, ControlEvent, take_requests
from rollout.store.run_directory import RunDirectory

logger = logging.getLogger("trialrun")

MAX_WORKERS = 4_096
"""A higher number is taken for a typing mistake."""
_DIGITS = 12
"""Longer numbers are refused unread."""
_POLL_S = 1.0


class Resizable(Protocol):
    """The part of a pool that requests use."""

    @property
    def desired(self) -> int: ...

    def resize(self, desired: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Controls:
    """What requests act on."""

    run: RunDirectory
    pool: Resizable
    room: Callable[[], int]
    """Number of further workers that the cluster has room for now."""

    def answer(self, progress: Progress) -> None:
        """Carry out new requests; every request gets an answer in the journal."""
        for name, request in take_requests(self.run.layout):
            event = request or ControlEvent(at=0.0, actor="unknown", action="unknown")
            refused, note = self._refusal(request), ""
            if not refused:
                note = self._resize(int(event.detail))
            answer = {"at": time.time(), "request": name, "refused": refused, "note": note}
            self.run.record_control(event.model_copy(update=answer))
            outcome = f"refused: {refused}" if refused else note or "done"
            progress.say(f"request of {event.actor}: {event.action} {event.detail} ({outcome})")

    def _refusal(self, event: ControlEvent | None) -> str:
        if event is None:
            return "expected a request, found another file"
        if event.action != SCALE:
            return f"expected {SCALE}, found {event.action!r}"
        if not (event.detail.isascii() and event.detail.isdigit()):
            return f"expected a number of workers, found {event.detail[:40]!r}"
        if len(event.detail) > _DIGITS or not 1 <= int(event.detail) <= MAX_WORKERS:
            return f"expected 1 to {MAX_WORKERS} workers, found {event.detail[:40]}"
        return ""

    def _resize(self, desired: int) -> str:
        """Resize the pool; return a note for the requester, or ''."""
        more, room = desired - self.pool.desired, self.room()
        self.pool.resize(desired)
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
