"""Waiting for the answer of a process that may have died, be frozen, or just be busy.

After a few seconds without an answer the process itself is looked at. One that computes is busy and
may take long; one that is stopped, or computes nothing, is given up.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from cluster.fleet.health.losses import LossKind
from cluster.fleet.health.vitals import Sign, Vital
from envs.errors import InfraError

Answer = TypeVar("Answer")
Look = Callable[[], Awaitable[Vital | None]]
"""Returns what a look at the process finds; None where nobody can look."""

TURN_S = 0.5
"""Time is counted in turns of this length, so a loop that stands still counts one turn: whoever did
not listen calls nobody lost."""
_STILL_SHARE = 0.05
"""Share of one processor below which a process counts as computing nothing: threads that only keep
connections alive use less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds until a process without an answer is given up; all count from the question."""

    answer_s: float = 4.0
    """Then it is looked at."""
    still_s: float = 2.0
    """How long it must have been seen to compute nothing."""
    unseen_s: float = 7.0
    """When it is given up if nobody can look at it."""
    limit_s: float = 60.0
    """When it is given up although it computes."""


class NoAnswer(InfraError):
    """A process did not answer; `kind` says what was found instead."""

    def __init__(self, message: str, kind: LossKind) -> None:
        super().__init__(message, kind)
        self.message = message
        self.kind = kind

    def __str__(self) -> str:
        return self.message


async def await_answer(question: Awaitable[Answer], look: Look, patience: Patience) -> Answer:
    """Return the answer to `question`. Raises NoAnswer, and what `question` raises."""
    asked = asyncio.ensure_future(question)
    waited_s, unseen = 0.0, 0
    seen: list[Vital] = []
    try:
        while True:
            await asyncio.wait({asked}, timeout=TURN_S)
            if asked.done():
                return asked.result()
            waited_s += TURN_S
            if waited_s < patience.answer_s:
                continue
            if waited_s >= patience.limit_s:
                raise NoAnswer(
                    f"no answer for {patience.limit_s:g} s, though it computes",
                    LossKind.UNRESPONSIVE,
                )
            vital = await look()
            if vital is None:
                unseen += 1
                if patience.answer_s + unseen * TURN_S > patience.unseen_s:
                    raise NoAnswer("neither it nor its node answers", LossKind.UNREACHABLE)
                continue
            seen.append(vital)
            if found := verdict(seen, patience):
                raise found
    finally:
        asked.cancel()


def verdict(seen: list[Vital], patience: Patience) -> NoAnswer | None:
    """Return why a process is given up that was `seen` once a turn since it owes an answer."""
    last = seen[-1]
    if last.sign is Sign.GONE:
        return NoAnswer("its process ended", LossKind.DIED)
    if [vital.sign for vital in seen[-3:]] == [Sign.STOPPED] * 3:
        return NoAnswer("its process is stopped (SIGSTOP or a debugger)", LossKind.FROZEN)
    looks = int(patience.still_s / TURN_S) + 1
    window = seen[-looks:]
    if len(window) < looks or any(vital.sign is not Sign.ALIVE for vital in window):
        return None
    used_s = last.cpu_s - window[0].cpu_s
    if any(vital.at_work for vital in window) or used_s > _STILL_SHARE * patience.still_s:
        return None
    return NoAnswer("its process neither answers nor computes", LossKind.FROZEN)
