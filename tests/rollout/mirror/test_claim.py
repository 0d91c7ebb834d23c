"""One writer claims a mirror; one that fell silent can be replaced."""

import os
from pathlib import Path

import pytest

from envs.errors import StoreError
from rollout.mirror.claim import CLAIM, Claim, ClaimLostError, ClaimRecord, read_claim
from rollout.mirror.place import Place
from tests.rollout.mirror.mirrored_run import place_in


class Waiting:
    """Counts the pauses, and does something at each."""

    def __init__(self, place: Place, folder: Path, *, then: str = "") -> None:
        self.place, self.file, self.then = place, folder / "mirrors" / "unit" / CLAIM, then
        self.pauses = 0

    def __call__(self, seconds: float) -> None:
        self.pauses += 1
        if self.then == "age":
            age(self.file, 20.0)
        elif self.then == "beat":
            record = read_claim(self.place)
            assert record is not None
            beaten = record.model_copy(update={"beat": record.beat + 1})
            self.place.write(CLAIM, beaten.model_dump_json().encode())
        elif self.then == "claim":
            other = claim(self.place, "other").record
            self.place.write(CLAIM, other.model_dump_json().encode())
        assert self.pauses < 100


def age(file: Path, seconds: float) -> None:
    status = file.stat()
    os.utime(file, (status.st_atime - seconds, status.st_mtime - seconds))


def claim(place: Place, token: str, waiting: Waiting | None = None) -> Claim:
    record = ClaimRecord(token=token, host=f"{token}-host", pid=7, lease_s=60.0)
    return Claim(place, record, waiting or (lambda seconds: None))


def is_live(place: Place) -> bool:
    record = read_claim(place)
    return record is not None and not record.released


def test_a_claim_is_taken_renewed_and_released(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    assert not is_live(place)
    mine = claim(place, "a")
    mine.take()
    mine.renew()
    assert is_live(place)
    mine.release()
    assert not is_live(place)
    claim(place, "b").take()
    with pytest.raises(ClaimLostError, match="taken over by process 7 on b-host"):
        mine.renew()


def test_a_living_writer_is_not_replaced(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    claim(place, "a").take()
    with pytest.raises(StoreError, match=r"expected no other writer of .*process 7 on a-host"):
        claim(place, "b", Waiting(place, tmp_path, then="beat")).take()


def test_a_silent_writer_is_replaced_after_its_lease(tmp_path: Path) -> None:
    place, waiting = place_in(tmp_path), Waiting(place_in(tmp_path), tmp_path, then="age")
    first = claim(place, "a")
    first.take()
    second = claim(place, "b", waiting)
    second.take()
    assert waiting.pauses >= 4, "it has waited for the lease"
    with pytest.raises(ClaimLostError):
        first.check()
    second.check()


def test_the_own_claim_of_an_earlier_process_is_taken_at_once(tmp_path: Path) -> None:
    place, waiting = place_in(tmp_path), Waiting(place_in(tmp_path), tmp_path)
    claim(place, "a").take()
    claim(place, "b", waiting).take(own="a")
    assert waiting.pauses == 1


def test_of_two_that_claim_at_once_one_refuses(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    with pytest.raises(ClaimLostError, match="taken over by process 7 on other-host"):
        claim(place, "b", Waiting(place, tmp_path, then="claim")).take()


def test_a_claim_that_was_removed_is_written_again(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    mine = claim(place, "a")
    mine.take()
    place.delete([CLAIM])
    mine.renew()
    assert is_live(place)
    place.write(CLAIM, b"half")
    assert read_claim(place) is None
