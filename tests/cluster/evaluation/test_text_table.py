"""What tables print at the edge: an interval, or why there is none, and never `± 0.00`."""

import math
import re

import pytest

from cluster.evaluation.eval_tables import evaluation_markdown
from cluster.evaluation.text_table import TextTable, figure, print_tables, with_interval
from rollout.episode import Outcome
from rollout.evaluation.intervals import NO_INTERVAL
from rollout.evaluation.report import evaluation_report
from rollout.evaluation.statistics import ClusteredEstimate, mean_estimate
from rollout.evaluation.summary import EvalRow


def row(task: str, score: float, outcome: Outcome = Outcome.ANSWERED, calls: int = 1) -> EvalRow:
    return EvalRow(
        task=task,
        outcome=outcome,
        error="",
        parts={"answer": score},
        trial_calls=calls,
        execution_calls=0,
        tool_errors=0,
        turns=2,
        policy_errors={},
        sampled_tokens=10,
        started_at=0.0,
        ended_at=1.0,
        answer="7",
    )


def page(rows: list[EvalRow]) -> list[str]:
    """Return the lines of the two tables' rows for all tasks: accuracy, behaviour."""
    text = evaluation_markdown(evaluation_report(rows), "e", {"split": "heldout"})
    assert "nan" not in text and "±" not in text
    return [line for line in text.splitlines() if line.startswith("| all |")]


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (None, "-"),
        (ClusteredEstimate(None, None, 0), "-"),
        (mean_estimate([1.0]), "1.000 (n = 1)"),
        (mean_estimate([1.0] * 20), "1.000 [0.820, 1.000]"),
        (mean_estimate([7.0, 7.0]), "7.000 (no spread)"),
        (mean_estimate([6.0, 8.0]), "7.000 [-5.706, 19.706]"),
    ],
)
def test_a_figure_has_an_interval_or_says_why_not(
    estimate: ClusteredEstimate | None, text: str
) -> None:
    assert figure(estimate) == text


def test_a_figure_of_an_older_version_has_no_interval() -> None:
    assert with_interval(0.5, NO_INTERVAL, 0, ".2f") == "0.50 (no interval)"


def test_without_any_task() -> None:
    accuracy, behaviour = page([])
    assert accuracy == "| all | 0 | 0 | - |"
    assert behaviour == "| all | - | - | - | - |"


@pytest.mark.parametrize("lost", [Outcome.INFRA_FAILED, Outcome.ANSWERED])
def test_where_no_episode_counts(lost: Outcome) -> None:
    rows = [row(task, math.nan, lost) for task in "aabb"]
    accuracy, behaviour = page(rows)
    assert accuracy == "| all | 0 | 0 | - | - |"
    assert behaviour == "| all | - | - | - | - |"


def test_of_one_task() -> None:
    accuracy, behaviour = page([row("a", 1.0), row("a", 0.0)])
    assert accuracy == "| all | 1 | 2 | 0.500 (n = 1) | 1.000 (n = 1) |"
    assert behaviour.startswith("| all | 1.00 (n = 1) | 0.000 (n = 1) |")


def test_one_attempt_each_and_all_solved() -> None:
    accuracy, behaviour = page([row(str(i), 1.0) for i in range(20)])
    assert accuracy == "| all | 20 | 20 | 1.000 [0.820, 1.000] |"
    # no error in 20 tasks is no proof of none; trial calls have no bounds
    assert behaviour.startswith("| all | 1.00 (no spread) | 0.000 [0.000, 0.180] |")


def test_unequal_attempts_count_every_task_once() -> None:
    rows = [row("a", 1.0)] * 8 + [row(name, 0.0) for name in "bcd"]
    accuracy, _ = page(rows)
    single, _ = page([row("a", 1.0), *(row(name, 0.0) for name in "bcd")])
    assert accuracy.split(" | ")[3] == single.rstrip(" |").split(" | ")[3]
    # three tasks have too few attempts for pass@8
    assert accuracy.endswith("| 1.000 (n = 1) | 1.000 (n = 1) |")


def test_a_rate_whose_calls_are_nearly_all_missing() -> None:
    rows = [row("a", 1.0, calls=3), *(row(name, 1.0, calls=0) for name in "bcdefg")]
    _, behaviour = page(rows)
    assert behaviour.split(" | ")[2] == "0.000 (n = 1)"
    _, behaviour = page([row(name, 1.0, calls=0) for name in "abc"])
    assert behaviour.split(" | ")[2] == "-"


HOSTILE = "a|b [red]c[/] <img src=x> `d` [e](http://f) \x1b[31m\u202eg\n| h | \\| i"


def test_a_name_is_no_markup_of_a_terminal_or_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    table = TextTable(HOSTILE, ("", HOSTILE), [(HOSTILE, "1")])
    print_tables([table], [HOSTILE])
    shown = capsys.readouterr().out
    assert "[red]c[/]" in shown and "\\x1b[31m\\u202eg" in shown
    assert "\x1b" not in shown and "\u202e" not in shown
    title, _, head, _, line, *rest = table.markdown().split("\n")
    assert rest == [""]
    for text in (title, head, line):
        bare = re.sub(r"\\.", "", text)  # without what is escaped
        assert not any(mark in bare for mark in ("<", "`", "]("))
    assert len(re.sub(r"\\.", "", line).split("|")) == 4, "the row has two cells"
