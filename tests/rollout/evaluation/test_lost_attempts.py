"""Attempts without a reward: how many there are, and whose."""

import pytest

from rollout.evaluation.lost_attempts import lost_attempts


def rows(task: str, **outcomes: int) -> list[tuple[str, str]]:
    """Return task and outcome of every attempt."""
    return [(task, outcome) for outcome, count in outcomes.items() for _ in range(count)]


def test_nothing_lost_needs_no_word() -> None:
    found = lost_attempts(rows("a", answered=4) + rows("b", truncated=1, cancelled=3))
    assert (found.lost, found.attempts, found.suspects) == (0, 5, ())
    assert found.notes() == []


@pytest.mark.parametrize("outcome", ["infra_failed", "deadline"])
def test_a_task_that_is_lost_far_more_often_than_others_is_named(outcome: str) -> None:
    honest = [row for number in range(20) for row in rows(f"t{number}", answered=4)]
    found = lost_attempts(honest + rows("dies", answered=4, **{outcome: 30}))
    assert [(task.task, task.lost, task.attempts) for task in found.suspects] == [("dies", 30, 34)]
    counted, named = found.notes()
    assert counted.startswith("30 of 114 attempts failed")
    assert "dies (30 of 34)" in named


def test_a_bad_network_makes_no_task_a_suspect() -> None:
    unlucky = [
        row
        for number in range(40)
        for row in rows(f"t{number}", answered=6, infra_failed=number % 5)
    ]
    found = lost_attempts(unlucky)
    assert found.lost == 80
    assert found.suspects == ()


def test_one_task_alone_has_nothing_to_be_compared_with() -> None:
    assert lost_attempts(rows("only", answered=1, infra_failed=9)).suspects == ()
