"""Nodes that lose workers often get no new ones for a while, but never the last node."""

import pytest

from cluster.fleet.health.losses import LossKind
from cluster.fleet.health.quarantine import Quarantine, QuarantinePolicy

POLICY = QuarantinePolicy(losses=3, window_s=100.0, for_s=1000.0)
DIED = LossKind.DIED
BOTH = [{"a", "b"}]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quarantine(clock: Clock) -> Quarantine:
    return Quarantine(POLICY, clock)


def closed(quarantine: Quarantine) -> list[str]:
    return [found.node for found in quarantine.nodes]


def test_a_node_is_closed_after_losses_in_the_window_and_opened_again(
    quarantine: Quarantine, clock: Clock
) -> None:
    for kind in (DIED, LossKind.ENGINE):
        assert quarantine.lost("a", kind, "-", BOTH) is None
    found = quarantine.lost("a", LossKind.FROZEN, "stopped", BOTH)
    assert found is not None and closed(quarantine) == ["a"]
    assert found.kinds == (DIED, LossKind.ENGINE, LossKind.FROZEN)
    assert quarantine.describe() == [
        "node a is in quarantine for 1000 s more: it lost 3 workers (died, engine, frozen; the "
        "last: stopped)"
    ]
    clock.now = 1000.0
    assert closed(quarantine) == []
    assert quarantine.lost("a", DIED, "-", BOTH) is None, "it starts anew"


def test_losses_that_are_far_apart_or_not_its_fault_do_not_count(
    quarantine: Quarantine, clock: Clock
) -> None:
    for at in (0.0, 60.0, 120.0, 180.0):
        clock.now = at
        assert quarantine.lost("a", DIED, "-", BOTH) is None
    for kind in (LossKind.OVERRAN, LossKind.DRAINED) * 3:
        assert quarantine.lost("b", kind, "-", BOTH) is None
    for _ in range(5):
        assert quarantine.lost("", DIED, "it had no place yet", BOTH) is None


@pytest.mark.parametrize("usable", [[{"a"}], [{"a", "b"}, {"a"}], [], [set[str]()]])
def test_the_last_node_of_any_kind_of_worker_stays(
    quarantine: Quarantine, usable: list[set[str]]
) -> None:
    for _ in range(9):
        assert quarantine.lost("a", DIED, "-", usable) is None


def test_of_two_nodes_only_one_is_closed(quarantine: Quarantine) -> None:
    for _ in range(4):
        quarantine.lost("a", DIED, "-", BOTH)
        quarantine.lost("b", DIED, "-", BOTH)
    assert closed(quarantine) == ["a"]


def test_quarantine_can_be_turned_off() -> None:
    quarantine = Quarantine(QuarantinePolicy(losses=0))
    assert all(quarantine.lost("a", DIED, "-", BOTH) is None for _ in range(9))
