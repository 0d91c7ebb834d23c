"""What is asked of a job at work: it looks for requests, does what they say, and answers."""

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
"""More is a slip of the hand."""
_DIGITS = 12
"""More are not even read."""
_LOOK_EVERY_S = 1.0


class Resizable(Protocol):
    """A pool as requests see it."""

    @property
    def desired(self) -> int: ...

    def resize(self, desired: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Controls:
    """What requests act on."""

    run: RunDirectory
    pool: Resizable
    room: Callable[[], int]
    """How many further workers the cluster could hold now."""

    def answer(self, progress: Progress) -> None:
        """Do what was asked since the last time; every request gets an answer in the journal."""
        for name, request in take_requests(self.run.layout):
            asked = request or ControlEvent(at=0.0, actor="unknown", action="unknown")
            refused, note = self._refusal(request), ""
            if not refused:
                note = self._resize(int(asked.detail))
            told = {"at": time.time(), "request": name, "refused": refused, "note": note}
            self.run.record_control(asked.model_copy(update=told))
            outcome = f"refused: {refused}" if refused else note or "done"
            progress.say(f"{asked.actor} asked: {asked.action} {asked.detail} ({outcome})")

    def _refusal(self, asked: ControlEvent | None) -> str:
        if asked is None:
            return "expected a request, found another file"
        if asked.action != SCALE:
            return f"expected {SCALE}, found {asked.action!r}"
        if not (asked.detail.isascii() and asked.detail.isdigit()):
            return f"expected a number of workers, found {asked.detail[:40]!r}"
        if len(asked.detail) > _DIGITS or not 1 <= int(asked.detail) <= MAX_WORKERS:
            return f"expected 1 to {MAX_WORKERS} workers, found {asked.detail[:40]}"
        return ""

    def _resize(self, desired: int) -> str:
        """Return what there is to say about it."""
        more, room = desired - self.pool.desired, self.room()
        self.pool.resize(desired)
        if more <= room:
            return ""
        return f"the cluster has room for {room} of {more} more; the others wait for it"


@asynccontextmanager
async def controlled(controls: Controls, progress: Progress) -> AsyncIterator[None]:
    """Take requests to the job for as long as the block lasts."""
    looking = asyncio.create_task(_keep_looking(controls, progress))
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def _keep_looking(controls: Controls, progress: Progress) -> None:
    while True:
        try:
            controls.answer(progress)
        except Exception as error:  # no request ends a run
            logger.warning("a request could not be answered: %r", error)
        await asyncio.sleep(_LOOK_EVERY_S)
