"""A lost learner: which attempts are made again, from where, and when a run gives up."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.progress import Progress
from cluster.training.learner_restarts import unless_lost, with_restarts
from envs.errors import LearnerError, LearnerLostError, NonFiniteError

LOST = LearnerLostError("learner rl_step: the actor died")


class Attempts:
    """Attempts that end as given: an error is raised, a step is a checkpoint before a loss."""

    def __init__(self, *ends: Exception | int | str) -> None:
        self._ends: Iterator[Exception | int | str] = iter(ends)
        self.made = 0
        self._newest: Path | None = None

    async def attempt(self) -> str:
        self.made += 1
        match next(self._ends):
            case int(step):
                self._newest = Path(f"{step:06d}")
                raise LOST
            case Exception() as error:
                raise error
            case str(result):
                return result

    async def run(self, restarts: int) -> str:
        progress = Progress()
        return await with_restarts(self.attempt, lambda: self._newest, restarts, progress)


async def test_a_lost_learner_starts_anew(capsys: pytest.CaptureFixture[str]) -> None:
    attempts = Attempts(LOST, 2, "done")
    assert await attempts.run(1) == "done"
    said = capsys.readouterr().err
    assert "it starts anew from the initial model" in said
    assert "it starts anew from the checkpoint of step 2" in said


@pytest.mark.parametrize(
    ("restarts", "ends", "made"),
    [
        (0, (LOST,), 1),
        (2, (LOST, LOST, LOST), 3),
        (1, (1, 2, 3, LOST), 4),
    ],
)
async def test_losses_without_a_new_checkpoint_are_bounded(
    restarts: int, ends: tuple[Exception | int, ...], made: int
) -> None:
    attempts = Attempts(*ends)
    with pytest.raises(LearnerLostError):
        await attempts.run(restarts)
    assert attempts.made == made


@pytest.mark.parametrize("error", [LearnerError("bad shape"), NonFiniteError("nan")])
async def test_an_error_that_would_come_again_ends_the_run(error: Exception) -> None:
    attempts = Attempts(error, "done")
    with pytest.raises(type(error)):
        await attempts.run(3)
    assert attempts.made == 1


class Learner:
    def __init__(self, lost: Exception | None) -> None:
        self._lost = lost

    async def watch(self) -> None:
        if self._lost is not None:
            raise self._lost
        await asyncio.Event().wait()


async def test_work_that_waits_is_cancelled_when_the_learner_is_lost() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    learner: Any = Learner(LOST)
    async with asyncio.timeout(10):
        with pytest.raises(LearnerLostError):
            await unless_lost(work(), learner)
    assert cancelled.is_set()


async def test_work_ends_with_its_own_result_or_error() -> None:
    learner: Any = Learner(None)

    async def fails() -> None:
        raise NonFiniteError("nan")

    assert await unless_lost(asyncio.sleep(0, "done"), learner) == "done"
    with pytest.raises(NonFiniteError):
        await unless_lost(fails(), learner)
