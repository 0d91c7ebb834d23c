"""`trialrun compare`: reads evaluations, compares them, and formats the result."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from cluster.evaluation.text_table import TextTable, figure, markdown_text, with_interval
from envs.errors import ConfigError, MissingError, StoreError
from envs.tools import JsonObject
from rollout.evaluation.compare import Comparison, PairRow, Side, compare
from rollout.evaluation.intervals import Interval
from rollout.evaluation.reader import read_rows
from rollout.evaluation.report import ALL
from rollout.evaluation.summary import EvalRow
from rollout.store.run_reader import RunReader

COMPARISON_VERSION = 1
"""Version of the JSON format of a comparison."""


def compare_runs(arguments: Sequence[str], by: Sequence[str] = ()) -> Comparison:
    """Compare sides, each given as `[NAME=]RUN[,RUN...]` with one run per seed.

    Raises ConfigError for an invalid argument or for sides that cannot be compared, MissingError
    for a run that does not exist or has no episodes, and StoreError for a training run.
    """
    return compare([_side(argument) for argument in arguments], by)


def comparison_json(comparison: Comparison) -> JsonObject:
    """Return a comparison as JSON for programs."""
    return cast(JsonObject, {"version": COMPARISON_VERSION, **asdict(comparison)})


def comparison_tables(comparison: Comparison) -> list[TextTable]:
    """Return two tables: the accuracy of each side, and the differences between pairs."""
    unit = comparison.unit
    shared = " + ".join(map(str, comparison.shared))
    scores = [
        (side.name, _listed(side.tasks), _listed(side.samples), figure(side.score))
        for side in comparison.sides
    ]
    sides = TextTable(
        f"Accuracy on the {shared} shared tasks [95 % interval], {unit}s are the unit",
        ("", "tasks evaluated", "samples used", "pass@1"),
        scores,
    )
    return [sides, _difference_table(comparison)]


def comparison_markdown(comparison: Comparison) -> str:
    """Return the tables and the notes as Markdown."""
    names = " and ".join(side.name for side in comparison.sides)
    parts = [f"# Comparison of {markdown_text(names)}\n"]
    parts += [f"- {markdown_text(note)}.\n" for note in comparison.notes]
    parts += [table.markdown() for table in comparison_tables(comparison)]
    return "\n".join(parts)


def _difference_table(comparison: Comparison) -> TextTable:
    several = len(comparison.sides) > 2
    columns = [
        "",
        *["second minus first"] * several,
        "tasks",
        "scores",
        "difference [95 % interval]",
    ]
    columns += ["better / worse", "p", *["p (Holm)"] * several]
    names = [side.name for side in comparison.sides]
    what = "second minus first" if several else f"{names[1]} minus {names[0]}"
    tests = ", ".join(sorted({_test_name(row) for row in comparison.rows}))
    return TextTable(
        f"Differences: {what}, paired by {comparison.unit} (p: {tests}, two-sided)",
        tuple(columns),
        [_difference_row(row, several=several) for row in comparison.rows],
        labels=1 + several,
    )


def _difference_row(row: PairRow, *, several: bool) -> tuple[str, ...]:
    found = row.difference
    interval = Interval(found.low, found.high, found.method)
    return (
        ALL if row.by == ALL else f"{row.by} {row.value}",
        *[f"{row.second} - {row.first}"] * several,
        str(row.tasks),
        f"{row.first_score:.3f}, {row.second_score:.3f}",
        with_interval(found.mean, interval, found.pairs, "+.3f"),
        f"{found.wins} / {found.losses}",
        _p_value(found.p),
        *[_p_value(row.p_holm)] * several,
    )


def _test_name(row: PairRow) -> str:
    names = {
        "mcnemar": "McNemar's exact test",
        "sign flips, all": "all sign flips",
        "sign flips, drawn": "10,000 sign flips",
    }
    return names[row.difference.test]


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


def _side(argument: str) -> Side:
    name, named, paths = argument.rpartition("=")
    runs = [Path(path) for path in paths.split(",") if path]
    if not runs or (named and not name):
        raise ConfigError(f"expected [NAME=]RUN[,RUN...], found {argument!r}")
    return Side(
        name or ", ".join(run.resolve().name for run in runs),
        tuple(_evaluated(run) for run in runs),
    )


def _evaluated(path: Path) -> list[EvalRow]:
    reader = RunReader(path)
    if reader.metrics():
        raise StoreError(f"{path} is a training run: evaluate it, then compare the evaluations")
    rows = read_rows(path)
    if not rows:
        raise MissingError(f"expected an evaluation, found no episodes in {path}")
    return rows
