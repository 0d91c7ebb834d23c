"""Tables of an evaluation against numbers worked out by hand, and on anything at all."""

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.errors import ConfigError
from rollout.episode import Outcome
from rollout.evaluation.report import EvalReport, ReportRow, evaluation_report
from rollout.evaluation.summary import EvalRow


def row(task: str, score: float, outcome: Outcome = Outcome.ANSWERED, **changes: Any) -> EvalRow:
    fields: dict[str, Any] = {
        "task": task,
        "outcome": outcome,
        "error": "",
        "parts": {"answer": score},
        "trial_calls": 1,
        "execution_calls": 1,
        "tool_errors": 0,
        "turns": 2,
        "policy_errors": {},
        "sampled_tokens": 10,
        "started_at": 0.0,
        "ended_at": 1.0,
        "answer": str(score),
        "split": "heldout",
    }
    return EvalRow(**(fields | changes))


def found(report: EvalReport, by: str, value: str = "") -> ReportRow:
    (match,) = [row for row in report.rows if (row.by, row.value) == (by, value)]
    return match


def test_a_row_by_hand() -> None:
    """Task a: 2 of 4 right; task b: none of 4, one call in ten an error, a faulty turn."""
    report = evaluation_report(
        [row("a", score) for score in (1.0, 0.0, 1.0, 0.0)]
        + [row("b", 0.0, trial_calls=4, tool_errors=1) for _ in range(3)]
        + [row("b", 0.0, policy_errors={"no_action": 1}, sampled_tokens=50)]
    )
    (total,) = report.rows
    assert (total.tasks, total.samples, total.lost) == (2, 8, 0)
    # pass@2 of a: 1 - C(2,2)/C(4,2) = 5/6; the mean of two values p and 0 has the error p/2
    for k, of_a in ((1, 1 / 2), (2, 5 / 6), (4, 1.0)):
        estimate = total.pass_at_k[k]
        assert estimate.value == pytest.approx(of_a / 2)
        assert estimate.stderr == pytest.approx(of_a / 2)
        assert estimate.clusters == 2
    assert total.majority is not None and total.majority.value == pytest.approx(0.25)
    assert total.trial_calls.value == pytest.approx((4 + 13) / 8)
    # errors 0 of 8 calls and 3 of 17: residuals of opposite sign, sqrt(2) * sqrt(2) * 0.96 / 25
    assert total.tool_error_rate.value == pytest.approx(3 / 25)
    assert total.tool_error_rate.stderr == pytest.approx(2 * (8 * 3 / 25) / 25)
    assert total.malformed_rate.value == pytest.approx(1 / 16)
    assert total.tokens.value == pytest.approx(120 / 8)


def test_what_does_not_count_is_in_no_figure_and_said() -> None:
    report = evaluation_report(
        [row("a", 1.0), row("a", 1.0, Outcome.INFRA_FAILED, trial_calls=99)]
        + [row("b", 0.0), row("b", math.nan)]
        + [row("c", 1.0, Outcome.DEADLINE)] * 2
        + [row("d", 0.0), row("d", 1.0)]
    )
    total = found(report, "all")
    assert (total.tasks, total.samples, total.lost) == (3, 4, 4)
    assert total.pass_at_k[1].value == pytest.approx((1 + 0 + 0.5) / 3)
    assert (total.pass_at_k[2].value, total.pass_at_k[2].clusters) == (1.0, 1)
    assert total.pass_at_k[2].stderr is None
    assert total.trial_calls.value == 1.0
    lost, bounds, unseen, fewer = report.notes
    assert lost.startswith("4 of 8 episodes are excluded")
    assert "between 0.25 and 0.75" in bounds
    assert unseen.startswith("1 tasks are excluded from all figures")
    assert fewer.startswith("pass@2 is over the 1 of 3 tasks")


def test_rows_by_split_and_by_tags_of_two_to_eight_values() -> None:
    rows = [
        row(
            f"t{i}",
            float(i % 2),
            split="heldout" if i % 2 else "train",
            tags={"depth": str(10 - i), "seed": str(i), "kind": "one"},
        )
        for i in range(9)
    ]
    assert {r.by for r in evaluation_report(rows).rows} == {"all", "split"}
    report = evaluation_report(rows[:8])
    assert [r.value for r in report.rows if r.by == "depth"] == [str(i) for i in range(3, 11)]
    assert found(report, "split", "heldout").pass_at_k[1].value == 1.0
    assert found(report, "depth", "10").pass_at_k[1].value == 0.0
    assert report.splits == ("heldout", "train")


def test_rows_by_the_tags_that_are_named() -> None:
    tags = [{"depth": "2", "novelty": "names"}, {"depth": "1", "novelty": "seen"}, {"depth": "1"}]
    rows = [row(str(i), float(i == 0), tags=tags) for i, tags in enumerate(tags)]
    report = evaluation_report(rows, ["depth*novelty"])
    assert [(r.value, r.tasks) for r in report.rows[1:]] == [
        ("1 * -", 1),
        ("1 * seen", 1),
        ("2 * names", 1),
    ]
    with pytest.raises(ConfigError, match=r"\(depth, novelty\).*found size"):
        evaluation_report(rows, ["depth*size"])


def test_nothing_and_one_task_are_tables_too() -> None:
    empty = evaluation_report([], ["depth"])
    (total,) = empty.rows
    assert (total.tasks, total.pass_at_k[1].value, empty.summary.accuracy) == (0, None, None)
    alone = found(evaluation_report([row("a", 1.0)]), "all")
    assert (alone.pass_at_k[1].value, alone.pass_at_k[1].stderr) == (1.0, None)
    assert alone.majority is None


OUTCOMES = st.sampled_from(list(Outcome))
ROWS = st.lists(
    st.builds(
        row,
        st.sampled_from("abc"),
        st.sampled_from([0.0, 0.5, 1.0, math.nan]),
        OUTCOMES,
        trial_calls=st.integers(0, 3),
        execution_calls=st.integers(0, 1),
        turns=st.integers(0, 2),
        answer=st.sampled_from(["", "1", "2"]),
        split=st.sampled_from(["train", "heldout"]),
        tags=st.dictionaries(st.sampled_from(["depth", "doc"]), st.sampled_from("123")),
    ),
    max_size=12,
)


@settings(max_examples=40)
@given(ROWS)
def test_any_rows_make_a_table(rows: list[EvalRow]) -> None:
    report = evaluation_report(rows)
    read = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert read["version"] == 1 and len(read["rows"]) == len(report.rows)
    total = found(report, "all")
    assert total.samples + total.lost == len(rows) == report.summary.episodes
    for by in {r.by for r in report.rows} - {"all"}:
        members = [r for r in report.rows if r.by == by]
        assert sum(r.samples for r in members) == total.samples
    for line in report.rows:
        full = [e.value for e in line.pass_at_k.values() if e.clusters == line.tasks]
        values = [value for value in full if value is not None]
        assert all(b >= a - 1e-9 for a, b in pairwise(values)), "more samples are never worse"
        assert all(0.0 <= value <= 1.0 for value in values)
