"""What is decided about a slot that has lost its process: values, from numbers alone."""

import pytest

from cluster.fleet.supervision import Action, Decision, RestartPolicy, SlotRecord, Supervision

POLICY = RestartPolicy(backoff_s=1.0, max_backoff_s=30.0, give_up_after=3)


def record(failures: int, lost_at_s: float = 100.0) -> SlotRecord:
    return SlotRecord(failures, lost_at_s, "no such GPU")


@pytest.mark.parametrize(
    ("failures", "wait_s"), [(0, 1.0), (1, 2.0), (2, 4.0), (3, 8.0), (4, 16.0), (5, 30.0)]
)
def test_a_slot_is_tried_later_and_later_while_others_serve(failures: int, wait_s: float) -> None:
    assert POLICY.decide(record(failures), 100.0, others=1) == Decision(Action.WAIT, wait_s)


def test_the_wait_has_an_upper_bound_after_any_number_of_failures() -> None:
    assert POLICY.decide(record(10**6), 100.0, others=1) == Decision(Action.WAIT, 30.0)


@pytest.mark.parametrize(
    ("now_s", "decision"),
    [
        (100.0, Decision(Action.WAIT, 4.0)),
        (103.0, Decision(Action.WAIT, 1.0)),
        (104.0, Decision(Action.REPLACE)),
        (500.0, Decision(Action.REPLACE)),
    ],
)
def test_time_counts_from_the_loss(now_s: float, decision: Decision) -> None:
    assert POLICY.decide(record(2), now_s, others=0) == decision


@pytest.mark.parametrize(
    ("failures", "others", "needed", "action"),
    [
        (2, 0, 1, Action.WAIT),
        (3, 0, 1, Action.GIVE_UP),
        (9, 0, 1, Action.GIVE_UP),
        (3, 1, 1, Action.WAIT),
        (3, 1, 2, Action.GIVE_UP),
        (3, 2, 2, Action.WAIT),
    ],
)
def test_waiting_ends_only_if_too_few_others_remain(
    failures: int, others: int, needed: int, action: Action
) -> None:
    assert POLICY.decide(record(failures), 100.0, others=others, needed=needed).action is action


def test_a_slot_that_is_given_up_still_has_a_next_start() -> None:
    assert POLICY.decide(record(3), 100.0, others=0) == Decision(Action.GIVE_UP, 8.0)


@pytest.fixture
def supervision() -> Supervision:
    made = Supervision(POLICY, clock=lambda: 100.0)
    made.add(0)
    made.add(1)
    return made


def fail(supervision: Supervision, slot: int, times: int, reason: str = "no such GPU") -> Decision:
    return [supervision.lost(slot, reason, stable=False) for _ in range(times)][-1]


def test_failures_in_a_row_add_up_and_a_stable_life_forgives_them(
    supervision: Supervision,
) -> None:
    assert fail(supervision, 0, 1) == Decision(Action.WAIT, 2.0)
    assert fail(supervision, 0, 1) == Decision(Action.WAIT, 4.0)
    assert supervision.lost(0, "killed", stable=True) == Decision(Action.WAIT, 1.0)
    assert fail(supervision, 0, 1) == Decision(Action.WAIT, 2.0)
    supervision.serving(0)
    assert fail(supervision, 0, 1) == Decision(Action.WAIT, 2.0)
    assert supervision.losses == 5


def test_one_failing_slot_does_not_end_a_pool_and_the_last_one_does(
    supervision: Supervision,
) -> None:
    assert fail(supervision, 0, 3).action is Action.WAIT
    assert supervision.hopeless(1) == []
    assert supervision.hopeless(2) == ["no such GPU"]
    assert fail(supervision, 1, 3, "no such node").action is Action.GIVE_UP
    assert supervision.hopeless(1) == ["no such GPU", "no such node"]


def test_a_slot_that_serves_again_ends_the_hopelessness(supervision: Supervision) -> None:
    fail(supervision, 0, 3)
    fail(supervision, 1, 3)
    supervision.serving(1)
    assert supervision.hopeless(1) == []
    assert supervision.hopeless(2) == ["no such GPU"]


def test_a_removed_slot_neither_fails_nor_serves(supervision: Supervision) -> None:
    fail(supervision, 0, 3)
    supervision.remove(1)
    assert supervision.hopeless(1) == ["no such GPU"]
    supervision.remove(0)
    assert supervision.hopeless(1) == []
