"""The claim of a mirror, `writer.json`: which process writes to it.

A writer renews its claim every few seconds. One that has not been renewed for its lease counts as
given up. Object storage has no lock: a claimant writes its token, waits, and reads it back; of
several at once the last to write wins, and the others refuse. Each renewal looks first whether the
token is still its own. So two writers at once need a request that is delayed by more than the
pause. Times are the storage's, so clocks of nodes do not matter.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, ValidationError

from envs.errors import StoreError
from rollout.mirror.place import Place

CLAIM = "writer.json"
_SETTLE_S = 2.0
"""Seconds between writing a claim and reading it back, at most."""
RESOLUTION_S = 2.0
"""Object storage gives times in whole seconds."""
_BEATS_PER_LEASE = 6


class ClaimRecord(BaseModel):
    """Content of the claim."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    token: str
    host: str
    pid: int
    lease_s: float
    beat: int = 0
    """How often the claim was renewed."""
    released: bool = False
    """Whether its writer has ended in order."""

    @property
    def who(self) -> str:
        """The writer in words."""
        return f"process {self.pid} on {self.host}"


class ClaimLostError(StoreError):
    """Another writer has taken the mirror over."""


@dataclass(slots=True)
class Claim:
    """The claim of one writer."""

    place: Place
    record: ClaimRecord
    pause: Callable[[float], object] = field(default=time.sleep)

    @property
    def beat_s(self) -> float:
        """Seconds between two renewals."""
        return self.record.lease_s / _BEATS_PER_LEASE

    def take(self, own: str = "") -> None:
        """Claim the mirror. The claim with the token `own` is one's own, of an earlier process.

        Waits for the lease of a writer that has gone silent. Raises StoreError where one is alive,
        or another claimed it at the same moment, and InfraError.
        """
        check_free(self.place, own or self.record.token, self.pause)
        self._write()
        self.pause(min(_SETTLE_S, self.beat_s))
        self.check()

    def check(self) -> None:
        """Raise ClaimLostError where the mirror is another writer's now, and InfraError.

        A claim that is gone was nobody's to take: the next renewal writes it again.
        """
        found = read_claim(self.place)
        if found is not None and found.token != self.record.token:
            raise ClaimLostError(
                f"{self.place} was taken over by {found.who}: this run goes on, without a mirror. "
                "If both train, stop one of them: the mirror is the other's"
            )

    def renew(self) -> None:
        """Say that the writer lives. Raises as `check` does."""
        self.check()
        self.record = self.record.model_copy(update={"beat": self.record.beat + 1})
        self._write()

    def release(self) -> None:
        """Say that the writer has ended. Raises as `check` does."""
        self.check()
        self.record = self.record.model_copy(update={"released": True})
        self._write()

    def _write(self) -> None:
        self.place.write(CLAIM, self.record.model_dump_json().encode())


def read_claim(place: Place) -> ClaimRecord | None:
    """Return the claim; None where there is none, or it cannot be read. Raises InfraError."""
    content = place.read(CLAIM)
    try:
        return None if content is None else ClaimRecord.model_validate_json(content)
    except ValidationError:
        return None


def check_free(place: Place, own: str, pause: Callable[[float], object] = time.sleep) -> None:
    """Return when nobody else writes to the mirror.

    A claim that is not renewed is waited for, for the rest of its lease. Raises StoreError at the
    first renewal, and InfraError.
    """
    first: ClaimRecord | None = None
    while True:
        record = read_claim(place)
        if record is None or record.released or record.token == own:
            return
        first = first or record
        age = place.age_s(CLAIM)
        if age is None or age > record.lease_s + RESOLUTION_S:
            return
        if (record.token, record.beat) != (first.token, first.beat):
            raise StoreError(
                f"expected no other writer of {place}, found {record.who}: stop it or wait for its "
                "end"
            )
        pause(min(1.0, record.lease_s / _BEATS_PER_LEASE))
