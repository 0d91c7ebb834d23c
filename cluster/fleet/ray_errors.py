"""Errors of calls to Ray actors, as errors of this project."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from ray.exceptions import RayError, RayTaskError

from envs.errors import InfraError, TrialrunError

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCall:
    """A call of an actor, and the error that stands for its failure."""

    name: str
    """What the call does and where, for messages: `learner rl_step`, `worker-3`."""
    failure: type[InfraError]
    """Raised if the call fails with an error that is not one of this project's."""
    lost: type[InfraError] | None = None
    """Raised instead if the actor died or does not answer; None is `failure`."""
    timeout_s: float | None = None
    """Deadline of the answer; None if the caller has one."""
    advice: str = ""
    """What the user can do if the actor died."""


async def answer_of(pending: Awaitable[Answer], call: RemoteCall) -> Answer:
    """Return what `pending`, one or several answers of actors, brings.

    Raises what `error_of` returns, and `call.lost` after `call.timeout_s`.
    """
    deadline = asyncio.timeout(call.timeout_s)
    try:
        async with deadline:
            return await pending
    except RayError as error:
        raise error_of(error, call) from error
    except TimeoutError:
        if not deadline.expired():
            raise
        lost = call.lost or call.failure
        raise lost(f"{call.name}: no answer within {call.timeout_s:g} s") from None


def error_of(error: RayError, call: RemoteCall) -> TrialrunError:
    """Return the error of this project that `error` means.

    An error of this project that the actor raised keeps its type and message. Any other exception
    of the actor becomes a `call.failure`, the actor's death a `call.lost`.
    """
    if not isinstance(error, RayTaskError):
        death = f"{call.name}: the actor died: {first_line(error)}"
        lost = call.lost or call.failure
        return lost(f"{death}; {call.advice}" if call.advice else death)
    if isinstance(error.cause, TrialrunError):
        return error.cause
    return call.failure(f"{call.name}: {error.cause!r}")


def first_line(error: Exception) -> str:
    """Return the first line of the message; Ray appends a page of advice to it."""
    return next(iter(str(error).splitlines()), type(error).__name__)
