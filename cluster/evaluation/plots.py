"""Plots: an evaluation by difficulty, training metrics by step, a comparison.

matplotlib takes seconds to import, so this is the only file that imports it, and commands import
this file only when they plot. No display is needed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster.evaluation.report_files import report_on
from cluster.metrics import METRICS
from cluster.older_metrics import OLDER, training_series
from envs.errors import MissingError
from rollout.evaluation.compare import Comparison, PairRow
from rollout.evaluation.intervals import Interval
from rollout.evaluation.report import ALL, EvalReport, ReportRow
from rollout.evaluation.statistics import ClusteredEstimate
from rollout.store.journal import replace_file
from rollout.store.run_layout import RunKind
from rollout.store.run_reader import RunReader

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can distinguish."""
SERIES_VERSION = 1
"""Version of the format of `plot.json`."""
_WIDTH_IN, _DPI = 10.0, 120
_CURVES_PER_ROW = 3


def draw_run(path: Path) -> Path:
    """Draw the metrics of training, or the accuracy of any other run's episodes; returns the PNG,
    next to which lies the JSON.

    Raises MissingError where there is nothing to draw yet.
    """
    reader = RunReader(path)
    layout = reader.layout
    if reader.kind in (RunKind.TRAIN, RunKind.SFT):
        metrics = reader.metrics()
        if not metrics:
            raise MissingError(f"expected metrics to draw, found none in {path}: no step has ended")
        series = training_series(metrics)
        drawn = {
            name: {"steps": list(values), "values": list(values.values())}
            for name, values in series.items()
        }
        content = {"version": SERIES_VERSION, "run": reader.info.run, "series": drawn}
        replace_file(layout.plot_json, json.dumps(content).encode())
        known = {**METRICS, **OLDER}
        curves = {known[name].heading: values for name, values in series.items()}
        plot_training(curves, path.resolve().name, layout.plot)
    elif reader.episodes():
        plot_report(report_on(path), path.resolve().name, layout.plot)
    else:
        raise MissingError(f"expected episodes to draw, found none in {path}")
    return layout.plot


def plot_report(report: EvalReport, title: str, out: Path) -> None:
    """Plot pass@1 by difficulty next to pass@k, with 95 % intervals, as a PNG."""
    rows = report.rows
    figure = Figure(figsize=(_WIDTH_IN, 1.6 + 0.32 * max(len(rows), 7)), layout="constrained")
    figure.suptitle(title)
    if len(report.ks) > 1:
        bars, curves = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_pass_at_k(curves, report)
    else:
        bars = figure.subplots()
    _draw_bars(bars, rows)
    _save(figure, out)


def plot_training(series: Mapping[str, Mapping[int, float]], title: str, out: Path) -> None:
    """Plot one panel per series, with its values by step, as a PNG; a line is broken where a step
    has no value.
    """
    steps = sorted({step for values in series.values() for step in values})
    count = max(len(series), 1)
    across = min(count, _CURVES_PER_ROW)
    down = -(-count // across)
    figure = Figure(figsize=(_WIDTH_IN, 0.6 + 2.3 * down), layout="constrained")
    figure.suptitle(title)
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in panels[len(series) :]:
        panel.set_visible(False)
    for panel, (name, values) in zip(panels, series.items(), strict=False):
        panel.plot(
            steps,
            with_gaps(values, steps),
            color=COLOURS[0],
            linewidth=1.2,
            marker=".",
            markersize=3,
        )
        panel.set_title(name, fontsize="medium")
        panel.grid(alpha=0.3)
        panel.set_xlabel("step", fontsize="small")
        panel.tick_params(labelsize="small")
    _save(figure, out)


def with_gaps(values: Mapping[int, float], steps: Sequence[int]) -> list[float]:
    """Return one value per step, NaN where there is none: there a line is broken."""
    return [values.get(step, math.nan) for step in steps]


def plot_comparison(comparison: Comparison, out: Path) -> None:
    """Plot every paired difference with its 95 % interval, as a PNG."""
    pairs = list(dict.fromkeys((row.first, row.second) for row in comparison.rows))
    labels = list(dict.fromkeys(_label(row.by, row.value) for row in comparison.rows))
    height = 1.6 + len(labels) * (0.2 + 0.16 * len(pairs))
    figure = Figure(figsize=(_WIDTH_IN, height), layout="constrained")
    axes = figure.subplots()
    for place, pair in enumerate(pairs):
        rows = [row for row in comparison.rows if (row.first, row.second) == pair]
        _draw_differences(axes, rows, labels, (place, len(pairs)))
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("difference of pass@1 (95 % interval)")
    figure.legend(loc="outside upper left", fontsize="small", frameon=False)
    _save(figure, out)


def _save(figure: Figure, out: Path) -> None:
    """Write the figure as a PNG, in one piece. Raises StoreError."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    replace_file(out, content.getvalue())


def _draw_bars(axes: Axes, rows: Sequence[ReportRow]) -> None:
    shown = [row for row in rows if row.pass_at_k[1].value is not None]
    families = list(dict.fromkeys(row.by for row in shown))
    for place, row in enumerate(shown):
        estimate = row.pass_at_k[1]
        assert estimate.value is not None
        colour = COLOURS[families.index(row.by) % len(COLOURS)]
        down, up = _reach(estimate.value, estimate.interval)
        xerr = [[down], [up]]
        axes.barh(place, estimate.value, xerr=xerr, color=colour, alpha=0.85, capsize=3)
        end = estimate.value + up
        axes.text(end + 0.01, place, f"{estimate.value:.2f}", va="center", fontsize="small")
    labels = [f"{_label(row.by, row.value)}  ({row.tasks})" for row in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize="small")
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 1.08)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("pass@1, 95 % interval (tasks)")


def _draw_pass_at_k(axes: Axes, report: EvalReport) -> None:
    tags = list(dict.fromkeys(row.by for row in report.rows if row.by != ALL))
    shown = [row for row in report.rows if row.by in (ALL, *tags[:1])]
    for place, row in enumerate(shown):
        points = [(k, row.pass_at_k[k]) for k in report.ks if row.pass_at_k[k].value is not None]
        reach = [_reach(_value(estimate), estimate.interval) for _, estimate in points]
        axes.errorbar(
            [k for k, _ in points],
            [_value(estimate) for _, estimate in points],
            yerr=[list(side) for side in zip(*reach, strict=True)],
            label=_label(row.by, row.value),
            color="black" if row.by == ALL else COLOURS[(place - 1) % len(COLOURS)],
            marker="o",
            markersize=4,
            capsize=3,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(report.ks, [str(k) for k in report.ks])
    axes.set_ylim(0, 1.03)
    axes.grid(alpha=0.3)
    axes.set_xlabel("k")
    axes.set_ylabel("pass@k")
    axes.legend(fontsize="small", loc="lower right")


def _draw_differences(
    axes: Axes, rows: Sequence[PairRow], labels: Sequence[str], place: tuple[int, int]
) -> None:
    index, pairs = place
    shift = (index - (pairs - 1) / 2) * 0.7 / pairs
    places = [labels.index(_label(row.by, row.value)) + shift for row in rows]
    means = [row.difference.mean for row in rows]
    found = [row.difference for row in rows]
    reach = [_reach(each.mean, Interval(each.low, each.high, each.method)) for each in found]
    axes.errorbar(
        means,
        places,
        xerr=[list(side) for side in zip(*reach, strict=True)],
        fmt="o",
        markersize=4,
        capsize=3,
        color=COLOURS[index % len(COLOURS)],
        label=f"{rows[0].second} minus {rows[0].first}",
    )


def _value(estimate: ClusteredEstimate) -> float:
    assert estimate.value is not None
    return estimate.value


def _reach(value: float, interval: Interval) -> tuple[float, float]:
    """Return how far an interval reaches below and above the value; 0 without an interval."""
    if interval.low is None or interval.high is None:
        return 0.0, 0.0
    return max(0.0, value - interval.low), max(0.0, interval.high - value)


def _label(by: str, value: str) -> str:
    return ALL if by == ALL else f"{by} {value}"
