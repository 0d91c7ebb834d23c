"""When a lost worker or server is replaced, and when waiting for it is no longer worthwhile.

A pool has numbered slots. Each slot is filled by one process at a time (a rollout worker, a tool
server), which its supervisor replaces after it is lost. What to do with an empty slot is a
`Decision`, computed from numbers alone.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import StrEnum

_MAX_DOUBLINGS = 16
"""Keeps the power of two small; the longest wait is reached long before."""


class Action(StrEnum):
    """What to do about an empty slot."""

    REPLACE = "replace"
    """Start a new process now."""
    WAIT = "wait"
    """Start a new process after `Decision.wait_s`."""
    GIVE_UP = "give up"
    """Fail callers that wait for the slot: too few others can still serve them. The supervisor
    itself continues as for `WAIT`, since a lost node may come back.
    """


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about an empty slot, and the seconds until its next start."""

    action: Action
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """What is known about a slot that has lost its process."""

    failures: int
    """Losses in a row; one after a stable life is not counted."""
    lost_at_s: float
    """Time of the last loss, on the clock of the supervision."""
    reason: str
    """Why the last process was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How long a slot stays empty, and from how many failures on it is not waited for."""

    backoff_s: float
    """Wait after a loss that ended a stable life; it doubles with every failure in a row."""
    max_backoff_s: float = 30.0
    give_up_after: int = 3
    """Failures in a row after which the fault no longer looks like a passing one."""

    def decide(self, record: SlotRecord, now_s: float, *, others: int, needed: int = 1) -> Decision:
        """Return what to do about a slot that has lost its process.

        `others` is the number of other slots that serve or may still start; `needed` is how many
        processes the caller wants.
        """
        backoff_s = self.backoff_s * 2 ** min(record.failures, _MAX_DOUBLINGS)
        due_s = record.lost_at_s + min(backoff_s, self.max_backoff_s)
        wait_s = max(due_s - now_s, 0.0)
        if self.is_failing(record) and others < needed:
            return Decision(Action.GIVE_UP, wait_s)
        return Decision(Action.WAIT, wait_s) if wait_s else Decision(Action.REPLACE)

    def is_failing(self, record: SlotRecord) -> bool:
        """Whether callers should not count on the slot any more."""
        return record.failures >= self.give_up_after


class Supervision:
    """The records of all slots of one pool, and the decisions that follow from them."""

    def __init__(self, policy: RestartPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._records: dict[Hashable, SlotRecord] = {}
        self._slots: set[Hashable] = set()
        self.losses = 0
        """Processes lost so far, over all slots."""

    def add(self, slot: Hashable) -> None:
        """Count on `slot` from now on."""
        self._slots.add(slot)

    def remove(self, slot: Hashable) -> None:
        """Forget `slot`; its process is no longer wanted."""
        self._slots.discard(slot)
        self._records.pop(slot, None)

    def serving(self, slot: Hashable) -> None:
        """Note that the process of `slot` serves: it is counted on again."""
        self._records.pop(slot, None)

    def lost(self, slot: Hashable, reason: str, *, stable: bool) -> Decision:
        """Record a loss and return what to do; `stable` forgives the failures before it."""
        self.losses += 1
        earlier = self._records.get(slot)
        failures = 0 if stable else (earlier.failures if earlier else 0) + 1
        self._records[slot] = SlotRecord(failures, self._clock(), reason)
        return self.decide(slot)

    def decide(self, slot: Hashable, needed: int = 1) -> Decision:
        """Return what to do about `slot`, which has lost its process."""
        policy, others = self._policy, len(self._slots - self._failing() - {slot})
        return policy.decide(self._records[slot], self._clock(), others=others, needed=needed)

    def hopeless(self, needed: int) -> list[str]:
        """Return why `needed` processes cannot be had, a sorted list of reasons; empty if they can.

        They cannot if giving up is the decision for a slot.
        """
        failing = self._failing()
        given_up = [s for s in failing if self.decide(s, needed).action is Action.GIVE_UP]
        return sorted({self._records[slot].reason for slot in given_up})

    def _failing(self) -> set[Hashable]:
        return {slot for slot, found in self._records.items() if self._policy.is_failing(found)}
