"""What a run does when a rank of its learner is lost: the ranks start anew, the rest stays."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from cluster.fleet.learner_group import LearnerGroup
from cluster.progress import Progress
from envs.errors import LearnerLostError

Result = TypeVar("Result")


async def with_restarts(
    attempt: Callable[[], Awaitable[Result]],
    newest_checkpoint: Callable[[], Path | None],
    restarts: int,
    progress: Progress,
) -> Result:
    """Return what `attempt` returns; after LearnerLostError it is made again.

    Raises LearnerLostError at the loss after `restarts` attempts that brought no new checkpoint.
    """
    left, before = restarts, newest_checkpoint()
    while True:
        try:
            return await attempt()
        except LearnerLostError as error:
            newest = newest_checkpoint()
            if newest != before:
                left, before = restarts, newest
            if left <= 0:
                raise
            left -= 1
            start = f"the checkpoint of step {int(newest.name)}" if newest else "the initial model"
            progress.say(f"warning: the learner was lost ({error}); it starts anew from {start}")


async def unless_lost(work: Coroutine[Any, Any, Result], learner: LearnerGroup) -> Result:
    """Return what `work` returns. Raises LearnerLostError, and cancels `work`, if a rank dies
    meanwhile, also where `work` is waiting for something else.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(learner.watch())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        watching.result()
        raise AssertionError("a watch that ends without an error")
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
