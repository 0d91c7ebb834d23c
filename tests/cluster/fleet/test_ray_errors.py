"""Every kind of failure of a call to an actor, without Ray running."""

import asyncio
from collections.abc import Awaitable

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    RayError,
    RayTaskError,
)

from cluster.fleet.pool import WorkerLost
from cluster.fleet.ray_errors import RemoteCall, answer_of, error_of, first_line
from envs.errors import ConfigError, LearnerError, NonFiniteError, WeightSyncError

CALL = RemoteCall(name="learner rl_step", failure=LearnerError, advice="continue with --resume")


def raised(cause: Exception) -> RayTaskError:
    """Return what Ray raises where the actor raised `cause`."""
    return RayTaskError("rl_step", "Traceback ...", cause, "ray::Rank", 1, "10.0.0.1")


@pytest.mark.parametrize(
    "cause",
    [NonFiniteError("the loss is nan"), ConfigError("no such layer"), WeightSyncError("checksum")],
)
def test_an_error_of_this_project_keeps_its_type_and_message(cause: Exception) -> None:
    assert error_of(raised(cause), CALL) is cause


def test_any_other_exception_of_the_actor_is_a_failure_of_the_call() -> None:
    found = error_of(raised(ValueError("bad shape")), CALL)
    assert type(found) is LearnerError
    assert str(found) == "learner rl_step: ValueError('bad shape')"


@pytest.mark.parametrize(
    "death",
    [ActorDiedError(), ActorUnavailableError("no route", None), ObjectLostError("0", None, "")],
)
def test_an_actor_that_died_is_a_failure_with_advice(death: RayError) -> None:
    found = error_of(death, CALL)
    assert type(found) is LearnerError
    assert str(found).startswith("learner rl_step: the actor died: ")
    assert str(found).endswith("; continue with --resume")
    assert "\n" not in str(found), "Ray's page of advice is left out"


def test_without_advice_a_message_ends_with_the_reason() -> None:
    call = RemoteCall(name="worker-3", failure=WorkerLost)
    found = error_of(ActorDiedError(), call)
    assert type(found) is WorkerLost
    assert str(found) == f"worker-3: the actor died: {ActorDiedError.BASE_ERROR_MSG}"


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    assert first_line(RayError()) == "RayError"


async def answer(outcome: float | Exception) -> float:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def test_an_answer_is_passed_on() -> None:
    assert await answer_of(answer(7.0), CALL) == 7.0


async def test_a_failed_call_raises_the_translation_and_keeps_rays_error_as_the_cause() -> None:
    failure = raised(NonFiniteError("the loss is nan"))
    with pytest.raises(NonFiniteError, match="the loss is nan") as caught:
        await answer_of(answer(failure), CALL)
    assert caught.value.__cause__ is failure


async def test_a_late_answer_is_a_failure_of_the_call() -> None:
    call = RemoteCall(name="learner start", failure=LearnerError, timeout_s=0.01)
    never: Awaitable[float] = asyncio.get_running_loop().create_future()
    with pytest.raises(LearnerError, match=r"learner start: no answer within 0\.01 s"):
        await answer_of(never, call)


async def test_a_deadline_of_the_caller_stays_a_timeout() -> None:
    never: Awaitable[float] = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await answer_of(never, CALL)


async def test_a_timeout_that_an_answer_raises_stays_one() -> None:
    with pytest.raises(TimeoutError, match="the actor's own"):
        await answer_of(answer(TimeoutError("the actor's own")), CALL)
