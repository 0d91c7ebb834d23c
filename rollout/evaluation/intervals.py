"""95 % intervals over clusters: the one place that decides how certain a figure is.

A cluster is a task (its episodes are not independent), or a seed (its tasks are not the only
possible ones). Shares, scores in [0, 1] and differences of scores have bounds, and near them the
standard error says nothing: of tasks that were all solved it is 0. They get Wilson's score interval
(1927) with an effective number of clusters, as Korn and Graubard (1998) do for surveys, and
Student's t. `tests/benchmarks/bench_intervals.py` measures how often these intervals are right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

CONFIDENCE = 0.95
Method = Literal["score", "t", "none"]
"""`score`: Wilson's interval with an effective number of clusters; `t`: Student's t, for figures
without bounds; `none`: there is no interval, because there is one cluster or no spread.
"""
Cluster = tuple[float, float]
"""Numerator and denominator of one cluster; a denominator of 0 has no information."""
_UNSEEN = 0.5
"""Squared distances of one cluster at 0 and one at 1 from a mean between them."""
_FEW = 2.0
"""Carriers of the spread at which `_UNSEEN` has faded to a third. Chosen by simulation: with 3,
intervals of ten tasks are wider than they need be; with 1.5, those of 100 tasks too narrow.
"""
_NO_ROOM = 1e-12
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval; both ends are None where there is none."""

    low: float | None = None
    high: float | None = None
    method: Method = "none"

    def scaled(self, factor: float, shift: float) -> "Interval":
        """Return the interval of `factor * x + shift`, for a factor above zero."""
        if self.low is None or self.high is None:
            return self
        return Interval(self.low * factor + shift, self.high * factor + shift, self.method)


NO_INTERVAL = Interval()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spread:
    """What clusters say about the error of their ratio."""

    value: float
    squares: float
    """Sum of the squared residuals, each in units of the denominators' sum."""
    clusters: int
    equal: float
    """Number of clusters of equal weight that would be worth as much (Kish), 1 / sum of squared
    weights.
    """
    carriers: float
    """Number of clusters that carry the spread: 1 if one cluster has all of it, and the number of
    clusters if all residuals have the same size.
    """

    @property
    def variance(self) -> float:
        """Of the ratio; the factor G/(G-1) for G clusters makes equal weights give s^2 / G."""
        return self.squares * self.clusters / (self.clusters - 1)

    @property
    def freedom(self) -> int:
        return max(1, round(self.equal) - 1)


def share_interval(clusters: Sequence[Cluster], units: float = 1.0) -> Interval:
    """Return the interval of a share, numerators over denominators, each cluster's in [0, 1].

    The effective number of clusters follows from the spread between them. Where few of them carry
    that spread, it misses what happens in few tasks, so as much as one more cluster at each end
    would add is included; this fades as more clusters carry it. Without any spread each cluster
    counts as one draw, or as `units` draws if its value is the mean of so many independent ones.
    """
    spread = _spread(clusters)
    return NO_INTERVAL if spread is None else _score_interval(spread, units)


def mean_interval(clusters: Sequence[Cluster]) -> Interval:
    """Return the interval of a mean per unit of the denominator that has no bounds.

    There is none where all clusters agree: they show no spread, and nothing bounds it.
    """
    spread = _spread(clusters)
    if spread is None or spread.variance <= 0:
        return NO_INTERVAL
    return _t_interval(spread.value, math.sqrt(spread.variance), spread.freedom)


def difference_interval(
    differences: Sequence[float], units: float = 1.0, *, bounded: bool = True
) -> Interval:
    """Return the interval of a mean of paired differences, of scores in [0, 1] if `bounded`."""
    if not bounded:
        return mean_interval([(difference, 1.0) for difference in differences])
    found = share_interval([((1 + difference) / 2, 1.0) for difference in differences], units)
    return found.scaled(2.0, -1.0)


def interval_from_error(value: float, stderr: float, clusters: int) -> Interval:
    """Return the interval of a mean in [0, 1] of which only its standard error is known."""
    if clusters < 2:
        return NO_INTERVAL
    spread = _Spread(
        value=value,
        squares=stderr**2 * (clusters - 1) / clusters,
        clusters=clusters,
        equal=clusters,
        carriers=clusters if stderr > 0 else 0,
    )
    return _score_interval(spread, 1.0)


def independent_difference(
    first: tuple[float, Interval], second: tuple[float, Interval]
) -> Interval:
    """Return the interval of second minus first, two independent figures with their intervals.

    Squares of the distances to the ends add up (Newcombe 1998, method 10).
    """
    (a, of_a), (b, of_b) = first, second
    if of_a.low is None or of_a.high is None or of_b.low is None or of_b.high is None:
        return NO_INTERVAL
    down, up = math.hypot(b - of_b.low, of_a.high - a), math.hypot(of_b.high - b, a - of_a.low)
    return Interval(b - a - down, b - a + up, of_b.method)


def _spread(clusters: Sequence[Cluster]) -> _Spread | None:
    """Return what two or more clusters with a denominator say; None with fewer."""
    used = [(part, total) for part, total in clusters if total > 0]
    if len(used) < 2:
        return None
    whole = math.fsum(total for _, total in used)
    value = math.fsum(part for part, _ in used) / whole
    squares = [((part - value * total) / whole) ** 2 for part, total in used]
    both = math.fsum(squares)
    if both <= _ROUNDING**2 * max(1.0, value**2):
        squares, both = [], 0.0  # equal clusters, up to rounding
    fourth = math.fsum(square**2 for square in squares)
    return _Spread(
        value=value,
        squares=both,
        clusters=len(used),
        equal=1 / math.fsum((total / whole) ** 2 for _, total in used),
        carriers=both**2 / fourth if fourth > 0 else 0.0,
    )


def _score_interval(spread: _Spread, units: float) -> Interval:
    """Return Wilson's interval with as many draws as the spread is worth."""
    value = min(max(spread.value, 0.0), 1.0)
    # The spread that clusters would have if each were one draw; 0 at the bounds.
    room = spread.equal * value * (1 - value)
    if room < _NO_ROOM:
        design = 1 / units
    else:
        seen = spread.variance * spread.equal**2
        unseen = min(_UNSEEN, room) * math.exp(-spread.carriers / _FEW) / units
        # One draw a cluster is the worst case if weights and values are independent.
        worst = max(room, spread.squares * spread.equal**2)
        design = min(seen + unseen, worst) / room
    draws = spread.equal / design
    t = t_quantile((1 + CONFIDENCE) / 2, spread.freedom)
    middle = (draws * value + t**2 / 2) / (draws + t**2)
    reach = t / (draws + t**2) * math.sqrt(draws * value * (1 - value) + t**2 / 4)
    return Interval(max(0.0, middle - reach), min(1.0, middle + reach), "score")


def _t_interval(value: float, stderr: float, freedom: int) -> Interval:
    reach = t_quantile((1 + CONFIDENCE) / 2, freedom) * stderr
    return Interval(value - reach, value + reach, "t")


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's t for `probability` above one half.

    `freedom` is the integer number of degrees of freedom.
    """
    low, high = 0.0, 1.0
    while _t_inside(high, freedom) < 2 * probability - 1:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if _t_inside(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _t_inside(t: float, freedom: int) -> float:
    """Return the probability of [-t, t] (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for step in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (step - 1) / step
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
