"""How often a 95 % interval of an evaluation holds the truth, by simulation.

Run: python -m tests.benchmarks.bench_intervals [--draws 10000] [--only accuracy]

Each row draws evaluations with a known truth: tasks with a chance of success each (Beta, so that
two attempts at one task have the row's correlation), attempts at every task, and for errors also a
number of calls. "coverage" is the share of draws whose interval holds the truth, "too wide" and
"too narrow" mark what is outside of 0.93 to 0.97. With one attempt a task, only the number of
solved tasks can be observed; "possible" is then the coverage nearest to 0.95 that any interval can
have. The last column is what ± 1.96 standard errors would cover.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from rollout.evaluation.intervals import Interval, difference_interval, share_interval
from rollout.evaluation.statistics import ratio_estimate

Floats = npt.NDArray[np.float64]
LOWEST, HIGHEST = 0.93, 0.97
SHARES = (0.02, 0.5, 0.98)
SETTINGS = ((1, 0.0), (4, 0.0), (4, 0.3), (4, 0.8), (16, 0.0), (16, 0.3))
"""Attempts at a task, and the correlation between them."""
SEED_TASKS = 96
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row: what is estimated, from how many clusters, and how they are drawn."""

    figure: str
    clusters: int
    share: float
    attempts: int
    correlation: float


@dataclass(frozen=True, slots=True)
class Draw:
    """One evaluation's interval, and its value with its standard error."""

    interval: Interval
    value: float
    stderr: float


def cases() -> Iterator[Case]:
    for figure, counts, settings in (
        ("accuracy", (10, 30, 100), SETTINGS),
        ("pass@2", (10, 30, 100), ((4, 0.0), (4, 0.3), (16, 0.3))),
        ("errors per call", (5, 10, 30, 100), ((1, 0.3), (8, 0.3))),
        ("difference", (10, 30, 100), ((1, 0.8), (8, 0.3))),
        ("seeds", (3, 5, 10), ((SEED_TASKS, 0.0), (SEED_TASKS, 0.01), (SEED_TASKS, 0.1))),
    ):
        for clusters in counts:
            for share in SHARES:
                for attempts, correlation in settings:
                    yield Case(
                        figure=figure,
                        clusters=clusters,
                        share=share,
                        attempts=attempts,
                        correlation=correlation,
                    )


def chances(rng: np.random.Generator, case: Case, size: tuple[int, ...]) -> Floats:
    """Return each task's chance of success."""
    if case.correlation == 0:
        return np.full(size, case.share)
    scale = (1 - case.correlation) / case.correlation
    return rng.beta(case.share * scale, (1 - case.share) * scale, size)


def better(chance: Floats) -> Floats:
    """Return the chance after the odds have been multiplied by 1.5."""
    return 1.5 * chance / (1 + 0.5 * chance)


@cache
def truth(case: Case) -> float:
    if case.figure not in ("difference", "pass@2"):
        return case.share
    chance = chances(np.random.default_rng(1), case, (4_000_000,))
    if case.figure == "pass@2":
        return float(np.mean(1 - (1 - chance) ** 2))
    return float(np.mean(better(chance) - chance))


def possible(case: Case) -> float | None:
    """Return the coverage nearest to 0.95 that an interval can have, None if it is not limited.

    The results whose interval holds the truth are consecutive numbers of solved tasks. At one half
    they lie symmetrically, if an interval treats solved and unsolved tasks alike.
    """
    if case.figure != "accuracy" or case.attempts != 1:
        return None
    n, share = case.clusters, case.share
    chance_S = [comb(n, s) * share**s * (1 - share) ** (n - s) for s in range(n + 1)]
    sums = [
        sum(chance_S[low : high + 1])
        for low in range(n + 1)
        for high in range(low, n + 1)
        if share != 0.5 or low + high == n
    ]
    return min(sums, key=lambda covered: abs(covered - 0.95))


def draws(rng: np.random.Generator, case: Case, count: int) -> Iterator[Draw]:
    chance_NG = chances(rng, case, (count, case.clusters))
    if case.figure == "errors per call":
        calls_NG = case.attempts + rng.poisson(2 * case.attempts, chance_NG.shape)
        errors_NG = rng.binomial(calls_NG, chance_NG)
        for errors_G, calls_G in zip(errors_NG, calls_NG, strict=True):
            clusters = list(zip(errors_G.tolist(), calls_G.tolist(), strict=True))
            yield _draw(clusters, share_interval(clusters))
        return
    solved_NG = rng.binomial(case.attempts, chance_NG)
    scores_NG = solved_NG / case.attempts
    if case.figure == "pass@2":
        failed_NG = case.attempts - solved_NG
        pairs = case.attempts * (case.attempts - 1)
        scores_NG = 1 - failed_NG * (failed_NG - 1) / pairs
    if case.figure == "difference":
        scores_NG = rng.binomial(case.attempts, better(chance_NG)) / case.attempts - scores_NG
    for scores_G in scores_NG.tolist():
        clusters = [(score, 1.0) for score in scores_G]
        if case.figure == "difference":
            yield _draw(clusters, difference_interval(scores_G))
        else:
            units = SEED_TASKS if case.figure == "seeds" else 1
            yield _draw(clusters, share_interval(clusters, units))


def _draw(clusters: Sequence[tuple[float, float]], interval: Interval) -> Draw:
    found = ratio_estimate(clusters)
    assert found.value is not None and found.stderr is not None
    return Draw(interval, found.value, found.stderr)


def coverage(case: Case, count: int) -> tuple[float, float]:
    """Return how often the interval, and ± 1.96 standard errors, hold the truth."""
    rng = np.random.default_rng([case.clusters, case.attempts, round(1000 * case.share)])
    true = truth(case)
    held = normal = 0
    for draw in draws(rng, case, count):
        low, high = draw.interval.low, draw.interval.high
        assert low is not None and high is not None
        held += low - _ROUNDING <= true <= high + _ROUNDING
        normal += abs(draw.value - true) <= 1.96 * draw.stderr + _ROUNDING
    return held / count, normal / count


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of 95 % intervals.")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument(
        "--only", help="one figure: accuracy, pass@2, errors per call, difference, seeds"
    )
    options = parser.parse_args()
    table = Table(title=f"Coverage of 95 % intervals, {options.draws:,} draws a row")
    for heading in ("figure", "tasks or seeds", "truth", "attempts", "correlation"):
        table.add_column(heading, justify="right")
    for heading in ("coverage", "", "possible", "± 1.96 standard errors"):
        table.add_column(heading, justify="right")
    for case in cases():
        if options.only in (None, case.figure):
            held, normal = coverage(case, options.draws)
            mark = "too narrow" if held < LOWEST else "too wide" if held > HIGHEST else ""
            row = (case.clusters, f"{truth(case):.3f}", case.attempts, case.correlation)
            best = possible(case)
            nearest = "" if best is None else f"{best:.3f}"
            found = (f"{held:.3f}", mark, nearest, f"{normal:.3f}")
            table.add_row(case.figure, *map(str, row), *found)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
