"""Comparisons of evaluations against numbers worked out by hand."""

from collections.abc import Sequence
from typing import Any

import pytest

from envs.errors import ConfigError
from rollout.episode import Outcome
from rollout.evaluation.compare import PairRow, Side, compare
from rollout.evaluation.summary import EvalRow


def row(task: str, score: float, outcome: Outcome = Outcome.ANSWERED, **changes: Any) -> EvalRow:
    fields: dict[str, Any] = dict.fromkeys(
        ("trial_calls", "execution_calls", "tool_errors", "turns", "sampled_tokens"), 0
    )
    fields |= {"error": "", "parts": {"answer": score}, "policy_errors": {}}
    return EvalRow(task=task, outcome=outcome, started_at=0.0, ended_at=0.0, **(fields | changes))


def side(name: str, *seeds: Sequence[float]) -> Side:
    """Task i of a seed has score i; ids are shared between sides, not between seeds."""
    return Side(
        name,
        tuple(
            [row(f"s{seed}-{i}", score) for i, score in enumerate(scores)]
            for seed, scores in enumerate(seeds)
        ),
    )


def overall(rows: Sequence[PairRow]) -> PairRow:
    (found,) = [row for row in rows if row.by == "all"]
    return found


def test_single_samples_are_compared_by_mcnemar() -> None:
    found = compare([side("old", [0, 0, 0, 0, 1, 1, 0, 0]), side("new", [1, 1, 1, 1, 1, 0, 1, 0])])
    pair = overall(found.rows)
    assert (found.unit, found.shared) == ("task", (8,))
    assert (pair.first, pair.second) == ("old", "new")
    assert (pair.first_score, pair.second_score) == (0.25, 0.75)
    assert (pair.difference.mean, pair.difference.wins, pair.difference.losses) == (0.5, 5, 1)
    # 2 * (1 + 6) / 2^6
    assert (pair.difference.p, pair.difference.test) == (pytest.approx(14 / 64), "mcnemar")
    # differences: five 1, one -1, two 0: squares 6, mean 1/2: s^2 = (6 - 8/4) / 7
    assert pair.difference.stderr == pytest.approx((4 / 7 / 8) ** 0.5)
    assert [score.score.value for score in found.sides] == [0.25, 0.75]


def test_samples_are_averaged_within_a_task_before_they_are_paired() -> None:
    old = Side("old", ([row("a", 1.0), row("a", 0.0), row("b", 0.0), row("b", 0.0)],))
    new = Side("new", ([row("a", 1.0), row("b", 1.0), row("b", 1.0), row("b", 0.0)],))
    pair = overall(compare([old, new]).rows)
    assert (pair.difference.pairs, pair.difference.mean) == (2, pytest.approx((0.5 + 2 / 3) / 2))
    assert (pair.difference.p, pair.difference.test) == (0.5, "sign flips, all")


def test_only_shared_tasks_count_and_the_others_are_told() -> None:
    old = Side("old", ([row("a", 1.0), row("b", 0.0), row("c", 1.0), row("d", 0.0)],))
    new = Side(
        "new",
        (
            [
                row("a", 0.0),
                row("b", 1.0, Outcome.INFRA_FAILED),
                row("c", 0.0, question=9),
                row("d", 1.0),
                row("e", 1.0),
            ],
        ),
    )
    found = compare([old, new])
    assert found.shared == (2,)
    assert [(score.tasks, score.samples) for score in found.sides] == [((4,), (2,)), ((4,), (2,))]
    assert overall(found.rows).difference.mean == 0.0
    assert found.notes[0].startswith("old: 2 of 4 tasks are excluded")
    assert found.notes[1].startswith("new: 2 of 4 tasks are excluded")
    assert found.notes[2] == "with 2 tasks the permutation test cannot give a p below 0.5"


def test_tags_make_rows_of_their_own() -> None:
    def tagged(name: str, scores: Sequence[float]) -> Side:
        rows = [row(str(i), s, tags={"depth": str(1 + i // 2)}) for i, s in enumerate(scores)]
        return Side(name, (rows,))

    found = compare([tagged("old", [0, 0, 1, 1]), tagged("new", [1, 1, 1, 0])])
    rows = {row.value: row.difference.mean for row in found.rows if row.by == "depth"}
    assert rows == {"1": 1.0, "2": -0.5}
    assert [row.by for row in compare([*_two()], []).rows] == ["all"]
    with pytest.raises(ConfigError, match="found novelty"):
        compare([tagged("old", [0, 1]), tagged("new", [0, 1])], ["novelty"])


def _two() -> tuple[Side, Side]:
    return side("old", [0, 1]), side("new", [1, 1])


def test_more_than_two_sides_are_corrected_for_their_pairs() -> None:
    found = compare(
        [side("a", [0] * 8), side("b", [1] * 6 + [0] * 2), side("c", [1] * 8)],
    )
    rows = {(row.first, row.second): row for row in found.rows}
    assert {key: row.difference.p for key, row in rows.items()} == {
        ("a", "b"): 2 / 64,
        ("a", "c"): 2 / 256,
        ("b", "c"): 0.5,
    }
    assert rows["a", "c"].p_holm == pytest.approx(3 * 2 / 256)
    assert rows["a", "b"].p_holm == pytest.approx(2 * 2 / 64)
    assert rows["b", "c"].p_holm == 0.5


def test_seeds_are_the_unit_where_there_are_several() -> None:
    old = side("old", [0, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1])
    new = side("new", [0, 1, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1])
    found = compare([old, new])
    pair = overall(found.rows)
    assert (found.unit, found.shared, pair.tasks) == ("seed", (4, 4, 4), 12)
    # seed means 0.25 0.5 0.75 against 0.5 1 1: differences 0.25 0.5 0.25
    assert found.sides[0].score.value == pytest.approx(0.5)
    assert found.sides[0].score.stderr == pytest.approx(0.25 / 3**0.5)
    assert pair.difference.mean == pytest.approx(1 / 3)
    assert pair.difference.stderr == pytest.approx((1 / 48 / 3) ** 0.5)
    assert (pair.difference.p, pair.difference.pairs) == (0.25, 3)
    assert "with 3 seeds the permutation test cannot give a p below 0.25" in found.notes


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ([side("a", [1])], "two or more sides"),
        ([side("a", [1]), side("a", [1])], "different names for the sides"),
        ([side("a", [1]), side("b", [1], [1])], "same number of seeds on every side"),
        ([side("a", [1]), side("b", [])], "no task that all sides have"),
        ([side("a", []), side("b", [])], "no task that all sides have"),
        ([Side("a", ()), Side("b", ())], "at least one"),
    ],
)
def test_what_cannot_be_compared_is_refused(sides: list[Side], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(sides)
