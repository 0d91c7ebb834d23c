"""What a study's evaluations say together: means over seeds, and differences between arms."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rollout.evaluation.intervals import Interval, Method, independent_difference
from rollout.evaluation.statistics import are_shares, mean_estimate, paired


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One evaluation: an arm in a setting at a temperature, of one seed."""

    seed: int
    arm: str
    setting: str
    temperature: str
    accuracy: float
    stderr: float | None
    """Over its tasks; None where there were too few."""
    interval: Interval
    """Of `accuracy`, over its tasks."""
    tasks: int
    trial_calls: float
    """Mean per episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its standard error; None where there is nothing to estimate it from.

    Over several seeds, standard error and 95 % interval are over seeds; of one seed they are over
    its tasks.
    """

    mean: float
    stderr: float | None
    seeds: int
    low: float | None
    high: float | None
    method: Method

    @property
    def interval(self) -> Interval:
        return Interval(self.low, self.high, self.method)

    @property
    def in_stderrs(self) -> float | None:
        """The mean in units of its standard error."""
        return self.mean / self.stderr if self.stderr else None


@dataclass(frozen=True, slots=True)
class Row:
    """An arm in a setting at a temperature, over all seeds."""

    arm: str
    setting: str
    temperature: str
    accuracy: Estimate
    trial_calls: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much better an arm is than the best of those it is compared with."""

    arm: str
    setting: str
    temperature: str
    best: str
    """That arm: the one with the highest mean."""
    accuracy: Estimate


def rows_of(cells: Sequence[Cell]) -> list[Row]:
    """Return a row per arm, setting and temperature, in the order of their first cells."""
    groups: defaultdict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.arm, cell.setting, cell.temperature].append(cell)
    return [
        Row(*key, _mean(group), fmean(cell.trial_calls for cell in group))
        for key, group in groups.items()
    ]


def differences_of(cells: Sequence[Cell], against: Mapping[str, Sequence[str]]) -> list[Difference]:
    """Return, for each arm in `against` and each place where both were played, its difference to
    the best of the arms named there.

    Differences are taken seed by seed, for arms of one seed share tasks and a first model: their
    mean, and the error of that mean over seeds. With one seed the error is that of two independent
    evaluations.
    """
    rows = {(row.arm, row.setting, row.temperature): row for row in rows_of(cells)}
    found: list[Difference] = []
    for arm, setting, temperature in rows:
        rivals = [
            row
            for other in against.get(arm, ())
            if (row := rows.get((other, setting, temperature))) is not None
        ]
        if rivals:
            best = max(rivals, key=lambda row: row.accuracy.mean).arm
            place = [c for c in cells if (c.setting, c.temperature) == (setting, temperature)]
            estimate = _difference(place, arm, best)
            if estimate is not None:
                found.append(
                    Difference(
                        arm=arm,
                        setting=setting,
                        temperature=temperature,
                        best=best,
                        accuracy=estimate,
                    )
                )
    return found


def _mean(cells: Sequence[Cell]) -> Estimate:
    values = [cell.accuracy for cell in cells]
    if len(values) == 1:
        return _estimate(values[0], cells[0].stderr, 1, cells[0].interval)
    found = mean_estimate(values, _tasks(cells))
    return _estimate(fmean(values), found.stderr, len(values), found.interval)


def _difference(cells: Sequence[Cell], arm: str, other: str) -> Estimate | None:
    ours = {cell.seed: cell for cell in cells if cell.arm == arm}
    theirs = {cell.seed: cell for cell in cells if cell.arm == other}
    shared = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if not shared:
        return None
    mine, its = shared[0]
    if len(shared) == 1:
        errors = [error for error in (mine.stderr, its.stderr) if error is not None]
        interval = independent_difference(
            (its.accuracy, its.interval), (mine.accuracy, mine.interval)
        )
        stderr = math.hypot(*errors) if len(errors) == 2 else None
        return _estimate(mine.accuracy - its.accuracy, stderr, 1, interval)
    cells = [cell for pair in shared for cell in pair]
    bounded = are_shares(cell.accuracy for cell in cells)
    values = [mine.accuracy - its.accuracy for mine, its in shared]
    found = paired(values, bounded=bounded, units=_tasks(cells))
    interval = Interval(found.low, found.high, found.method)
    return _estimate(fmean(values), found.stderr, len(values), interval)


def _tasks(cells: Sequence[Cell]) -> int:
    """Return the fewest tasks that an evaluation of these is the mean of."""
    return max(1, min(cell.tasks for cell in cells))


def _estimate(mean: float, stderr: float | None, seeds: int, interval: Interval) -> Estimate:
    return Estimate(
        mean=mean,
        stderr=stderr,
        seeds=seeds,
        low=interval.low,
        high=interval.high,
        method=interval.method,
    )
