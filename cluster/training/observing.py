"""Watches a training job from beside its loop: says what stalls it, and keeps `health.json`."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from cluster.jobs.health import Health, WorkerHealth, write_health
from cluster.progress import Progress
from cluster.training.activity import Activity
from cluster.training.job import Job
from cluster.training.loop_watch import LoopWatch
from cluster.training.stall_watch import StallWatch, Surroundings

logger = logging.getLogger("trialrun")

_LOOK_EVERY_S = 1.0
_WRITE_EVERY_S = 5.0


class Observer:
    """What the loop tells of itself, and what was noticed about it."""

    def __init__(self, job: Job) -> None:
        self.activity = Activity()
        self._job = job
        self.stalls = StallWatch(
            self.activity,
            Surroundings(
                workers=lambda: job.pool.workers,
                outcomes=job.pool.outcomes,
                in_flight=lambda: job.rollouts.in_flight,
                learner=lambda: job.learner.describe(),
                quarantined=lambda: job.pool.quarantine.describe(),
                paused=lambda: job.pool.places.paused,
            ),
            job.config.run.stall_after_s,
        )

    def health(self) -> Health:
        """Return the state of the job's parts."""
        pool, now = self._job.pool, time.monotonic()
        paused = "is paused and " if pool.places.paused else ""
        return Health(
            at=time.time(),
            doing=paused + self.activity.describe(),
            stalled=self.stalls.culprit,
            failing=self.stalls.failing,
            wanted=pool.groups,
            workers=[
                WorkerHealth(
                    name=worker.name,
                    group=worker.group,
                    state=str(worker.state),
                    for_s=now - worker.since,
                    node=worker.node,
                    version=worker.version,
                    episodes=worker.running,
                )
                for worker in pool.workers
            ],
            quarantined=pool.quarantine.describe(),
        )


@asynccontextmanager
async def observed(job: Job, progress: Progress) -> AsyncIterator[Observer]:
    """Watch `job` while the block runs."""
    observer = Observer(job)
    say = partial(_say_stall, observer, job, progress)
    with LoopWatch(job.config.run.stall_after_s, say) as loop:
        watching = asyncio.create_task(_keep_watching(observer, job, loop, progress))
        try:
            yield observer
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def _say_stall(observer: Observer, job: Job, progress: Progress, line: str) -> None:
    """Say what holds up the loop, from another thread; the file says it too."""
    progress.say(line)
    try:
        write_health(job.run.layout, observer.health().model_copy(update={"stalled": line}))
    except Exception as error:
        logger.warning("health.json was not written: %r", error)


async def _keep_watching(observer: Observer, job: Job, loop: LoopWatch, progress: Progress) -> None:
    wrote_at = 0.0
    while True:
        loop.beat()
        try:
            if line := await observer.stalls.look():
                progress.say(line)
                wrote_at = 0.0
            if time.monotonic() - wrote_at >= _WRITE_EVERY_S:
                wrote_at = time.monotonic()
                await asyncio.to_thread(write_health, job.run.layout, observer.health())
        except Exception as error:  # whoever watches must not end what it watches
            logger.warning("the job could not be looked at: %r", error)
        await asyncio.sleep(_LOOK_EVERY_S)
