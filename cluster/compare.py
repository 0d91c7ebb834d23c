"""Runs compared and drawn: `trialrun compare` and `trialrun plot`; imports matplotlib."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from rich.console import Console

from cluster.eval_sheets import evaluation_sheets
from cluster.evaluate import report_on
from cluster.plots import plot_comparison, plot_report, plot_training
from cluster.sheet import Sheet, figure
from envs.errors import ConfigError, MissingError, StoreError
from envs.tools import JsonObject
from rollout.evaluation import EvalRow
from rollout.evaluation_compare import Comparison, PairRow, Side, compare
from rollout.evaluation_reader import read_rows
from rollout.evaluation_report import ALL, EvalReport
from rollout.journal import replace_file
from rollout.run_layout import existing_run
from rollout.run_reader import MetricsRow, RunReader

COMPARISON_VERSION = 1
"""Of the JSON of a comparison."""
SERIES_VERSION = 1
"""Of `plot.json`."""
CURVES = {
    "reward_mean": "reward",
    "answer_mean": "right answers",
    "trial_calls": "trial calls per episode",
    "mismatch_kl": "KL of sampler and trainer",
    "reference_kl": "KL to the reference",
    "entropy": "entropy (nats per token)",
    "loss": "loss",
    "grad_norm": "gradient norm",
    "staleness_mean": "staleness (versions)",
}
"""Metrics of training that are drawn, and what they are called; a run may lack some."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Files to write a comparison to."""

    markdown: Path | None = None
    plot: Path | None = None


def compare_runs(arguments: Sequence[str], by: Sequence[str], outputs: Outputs) -> Comparison:
    """Compare sides, each written `[NAME=]RUN[,RUN...]`: one run per seed.

    Raises ConfigError or MissingError for what cannot be compared.
    """
    sides = [_side(argument) for argument in arguments]
    comparison = compare(sides, by)
    if outputs.markdown is not None:
        outputs.markdown.write_text(_markdown(comparison), encoding="utf-8")
    if outputs.plot is not None:
        plot_comparison(comparison, outputs.plot)
    return comparison


def comparison_json(comparison: Comparison) -> JsonObject:
    """Return a comparison for a program to read."""
    return cast(JsonObject, {"version": COMPARISON_VERSION, **asdict(comparison)})


def print_comparison(comparison: Comparison) -> None:
    """Print the tables and what a reader has to know."""
    _print(comparison_sheets(comparison), comparison.notes)


def comparison_sheets(comparison: Comparison) -> list[Sheet]:
    """Return how each side does, and how the pairs differ."""
    unit = comparison.unit
    shared = " + ".join(map(str, comparison.shared))
    scores = [
        (side.name, _listed(side.tasks), _listed(side.samples), figure(side.score))
        for side in comparison.sides
    ]
    sides = Sheet(
        f"Right answers on the {shared} shared tasks (mean ± standard error over {unit}s)",
        ("", "tasks played", "samples used", "pass@1"),
        scores,
    )
    return [sides, _difference_sheet(comparison)]


def _difference_sheet(comparison: Comparison) -> Sheet:
    several = len(comparison.sides) > 2
    columns = ["", *["second minus first"] * several, "tasks", "scores", "difference"]
    columns += ["95 % interval", "better / worse", "p", *["p (Holm)"] * several]
    names = [side.name for side in comparison.sides]
    what = "second minus first" if several else f"{names[1]} minus {names[0]}"
    tests = ", ".join(sorted({_test_name(row) for row in comparison.rows}))
    return Sheet(
        f"{what[0].upper()}{what[1:]}, paired by {comparison.unit} (p: {tests}, two-sided)",
        tuple(columns),
        [_difference_row(row, several=several) for row in comparison.rows],
        labels=1 + several,
    )


def _difference_row(row: PairRow, *, several: bool) -> tuple[str, ...]:
    found = row.difference
    interval = "-" if found.low is None else f"{found.low:+.3f} to {found.high:+.3f}"
    stderr = "" if found.stderr is None else f" ± {found.stderr:.3f}"
    return (
        ALL if row.by == ALL else f"{row.by} {row.value}",
        *[f"{row.second} - {row.first}"] * several,
        str(row.tasks),
        f"{row.first_score:.3f}, {row.second_score:.3f}",
        f"{found.mean:+.3f}{stderr}",
        interval,
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


def _markdown(comparison: Comparison) -> str:
    names = " and ".join(side.name for side in comparison.sides)
    parts = [f"# Comparison of {names}\n"]
    parts += [f"- {note}.\n" for note in comparison.notes]
    parts += [sheet.markdown() for sheet in comparison_sheets(comparison)]
    return "\n".join(parts)


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


def report_run(path: Path) -> EvalReport:
    """Report on a complete evaluation anew and draw it; JSON, Markdown and PNG are in the run."""
    reader = RunReader(path)
    report = report_on(path)
    plot_report(report, path.resolve().name, reader.layout.plot)
    return report


def report_json(path: Path) -> str:
    """Return the report that is in the run, in one line."""
    return json.dumps(json.loads(existing_run(path).eval_json.read_bytes()))


def print_report(report: EvalReport) -> None:
    """Print the tables of an evaluation and what a reader has to know."""
    _print(evaluation_sheets(report), report.notes)


def draw_run(path: Path) -> Path:
    """Draw the training of a run, or its evaluation; returns the PNG, beside which lies the JSON.

    Raises MissingError where it has neither metrics nor episodes.
    """
    reader = RunReader(path)
    layout, metrics = reader.layout, reader.metrics()
    if metrics:
        series = training_series(metrics)
        told = {
            name: {"steps": list(values), "values": list(values.values())}
            for name, values in series.items()
        }
        content = {"version": SERIES_VERSION, "run": reader.run.run, "series": told}
        replace_file(layout.plot_json, json.dumps(content).encode())
        curves = {CURVES[name]: values for name, values in series.items()}
        plot_training(curves, path.resolve().name, layout.plot)
    elif reader.episodes():
        report_run(path)
    else:
        raise MissingError(f"expected metrics or episodes to draw, found none in {path}")
    return layout.plot


def training_series(metrics: Sequence[MetricsRow]) -> dict[str, dict[int, float]]:
    """Return the drawn metrics by step; a number that was not finite is missing."""
    series = {
        name: {row.step: row.values[name] for row in metrics if name in row.values}
        for name in CURVES
    }
    return {name: values for name, values in series.items() if values}


def _print(sheets: Sequence[Sheet], notes: Sequence[str]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    for sheet in sheets:
        console.print(sheet.rich())
    for note in notes:
        console.print(f"Note: {note}.", markup=False)
