"""Metrics by step, with what each of them means."""

from collections.abc import Sequence

from cluster.dashboard.index.run_facts import Step
from cluster.dashboard.models.runs import Series
from cluster.metrics import METRICS, POPULATIONS
from cluster.older_metrics import OLDER


def series_of(steps: Sequence[Step], names: Sequence[str] = ()) -> list[Series]:
    """Return the series of `names`, or of everything that the run recorded."""
    rows = [(step.step, step.values) for step in steps]
    found = {name for _, values in rows for name in values}
    ordered = [name for name in METRICS if name in found]
    ordered += sorted(found - METRICS.keys())
    return [_series(name, rows) for name in ordered if not names or name in names]


def _series(name: str, rows: Sequence[tuple[int, dict[str, float]]]) -> Series:
    metric = METRICS.get(name) or OLDER.get(name)
    return Series(
        name=name,
        title=metric.heading if metric else name,
        unit=metric.unit if metric else "",
        meaning=metric.meaning if metric else "Recorded by another version.",
        over=POPULATIONS[metric.over] if metric else "",
        averaging=metric.averaging if metric else "",
        steps=[step for step, _ in rows],
        values=[values.get(name) for _, values in rows],
    )
