"""Statistics of evaluations as pure functions. A task is a cluster; tasks are independent."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from envs.errors import ConfigError
from rollout.evaluation.intervals import (
    Cluster,
    Interval,
    Method,
    difference_interval,
    mean_interval,
    share_interval,
)

PERMUTATIONS = 10_000
"""Number of sampled sign flips; if there are no more possible flips, all are enumerated."""
Test = Literal["mcnemar", "sign flips, all", "sign flips, drawn"]
"""Source of a p-value: all sign flips, or a random sample of them (`drawn`).

`mcnemar` is the same as all sign flips if every pair differs by 0 or 1.
"""
_EXACT_UP_TO = int(math.log2(PERMUTATIONS))
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class ClusteredEstimate:
    """An estimate with its standard error and 95 % interval over clusters.

    `value` is None without data; `stderr` is None with fewer than two clusters. `clusters` is the
    number of tasks (or seeds) that the estimate is over. `low` and `high` are None where `method`
    is `none`. A standard error of 0 means that all clusters agree, not that the value is certain.
    """

    value: float | None
    stderr: float | None
    clusters: int
    low: float | None = None
    high: float | None = None
    method: Method = "none"

    @property
    def interval(self) -> Interval:
        return Interval(self.low, self.high, self.method)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Mean of paired differences with standard error, interval and p-value.

    `stderr`, `low` and `high` (95 %) are None for a single pair. `p` is two-sided.
    """

    pairs: int
    mean: float
    stderr: float | None
    low: float | None
    high: float | None
    method: Method
    """How `low` and `high` were computed."""
    wins: int
    """Number of pairs whose difference is above zero."""
    losses: int
    p: float
    test: Test
    """How `p` was computed; it is exact unless sign flips were sampled (`drawn`)."""


def ratio_estimate(
    clusters: Sequence[Cluster], *, share: bool = False, units: float = 1.0
) -> ClusteredEstimate:
    """Estimate the sum of numerators over the sum of denominators, given both per cluster.

    Scores of one cluster may correlate. Residuals are therefore added up within a cluster before
    they are squared (Miller, "Adding Error Bars to Evals", arXiv 2411.00640, section 2.2). The
    factor G/(G-1) for G clusters makes denominators of one give the usual s / sqrt(G). A cluster
    with denominator zero has no information and is skipped. A `share` is of a part in its whole,
    and has the interval of one; `units` is the number of draws that a cluster's value is a mean of.
    """
    used = [(part, total) for part, total in clusters if total > 0]
    if not used:
        return ClusteredEstimate(None, None, 0)
    denominator = math.fsum(total for _, total in used)
    value = math.fsum(part for part, _ in used) / denominator
    if len(used) < 2:
        return ClusteredEstimate(value, None, len(used))
    squares = math.fsum((part - value * total) ** 2 for part, total in used)
    stderr = math.sqrt(squares * len(used) / (len(used) - 1)) / denominator
    found = share_interval(used, units) if share else mean_interval(used)
    return ClusteredEstimate(value, stderr, len(used), found.low, found.high, found.method)


def mean_estimate(values: Sequence[float], units: float = 1.0) -> ClusteredEstimate:
    """Estimate the mean of one value per cluster; values that are all in [0, 1] are a share."""
    return ratio_estimate([(value, 1.0) for value in values], share=are_shares(values), units=units)


def are_shares(values: Iterable[float]) -> bool:
    """Whether all values are in [0, 1]."""
    return all(0.0 <= value <= 1.0 for value in values)


def best_of_k(scores: Sequence[float], k: int) -> float:
    """Return the expected best of k scores sampled from `scores` without replacement.

    With scores of 0 and 1 this is the unbiased pass@k, 1 - C(n-c, k) / C(n, k) (Chen et al.,
    arXiv 2107.03374, equation 1); with k = 1 the mean. Raises ConfigError unless 1 <= k <= n.
    """
    n = len(scores)
    if not 1 <= k <= n:
        raise ConfigError(f"expected k from 1 to the {n} samples of the task, found {k}")
    ways = math.comb(n, k)
    ordered = sorted(scores)
    return math.fsum(math.comb(i, k - 1) / ways * ordered[i] for i in range(k - 1, n))


def majority_score(votes: Sequence[tuple[str, float]]) -> float:
    """Return the score of the most frequent answer, given `(answer, score)` per sample.

    Empty answers are not counted; without votes the score is zero. For a tie, the scores of the
    tied answers are averaged, and so are different scores of the same answer.
    """
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for answer, score in votes:
        if answer.strip():
            scores[answer.strip()].append(score)
    most = max(map(len, scores.values()), default=0)
    winners = [sum(given) / most for given in scores.values() if len(given) == most]
    return sum(winners) / len(winners) if winners else 0.0


def paired(
    differences: Sequence[float], seed: int = 0, *, bounded: bool = True, units: float = 1.0
) -> Paired:
    """Describe one or more paired differences, of scores in [0, 1] if they are `bounded`.

    `units` is the number of independent pairs that a difference is the mean of. Raises ConfigError
    if there are none, or one that is not finite or exceeds its bounds.
    """
    if not differences or not all(map(math.isfinite, differences)):
        raise ConfigError(f"expected finite paired differences, found {list(differences)[:4]}")
    if bounded and max(map(abs, differences)) > 1:
        raise ConfigError(
            f"expected differences of scores in [0, 1], found {max(differences, key=abs)}: "
            "call with bounded=False"
        )
    estimate = mean_estimate(differences)
    mean = estimate.value
    assert mean is not None
    p, test = sign_flip_p(differences, seed)
    found = difference_interval(differences, units, bounded=bounded)
    return Paired(
        pairs=len(differences),
        mean=mean,
        stderr=estimate.stderr,
        low=found.low,
        high=found.high,
        method=found.method,
        wins=sum(difference > 0 for difference in differences),
        losses=sum(difference < 0 for difference in differences),
        p=p,
        test=test,
    )


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> tuple[float, Test]:
    """Return the two-sided p-value of a zero mean under sign flips, and how it was computed.

    It is exact for up to 13 pairs that differ, and if all differences have the same size.
    Otherwise `PERMUTATIONS` flips are sampled with `seed`, and p is (extreme + 1) / (sampled + 1).
    """
    sizes_N = np.abs(np.asarray([d for d in differences if d != 0.0], np.float64))
    if len(sizes_N) == 0:
        return 1.0, "sign flips, all"
    if np.ptp(sizes_N) == 0:
        wins = sum(difference > 0 for difference in differences)
        test: Test = "mcnemar" if sizes_N[0] == 1 else "sign flips, all"
        return mcnemar_p(wins, len(sizes_N) - wins), test
    reached = abs(math.fsum(differences)) - 1e-9 * float(sizes_N.sum())
    if len(sizes_N) <= _EXACT_UP_TO:
        sums_P = _all_signs(len(sizes_N)) @ sizes_N
        return float(np.mean(np.abs(sums_P) >= reached)), "sign flips, all"
    rng = np.random.default_rng(seed)
    extreme = 0
    for _ in range(PERMUTATIONS // _CHUNK):
        signs_PN = rng.choice(np.array([-1.0, 1.0]), (_CHUNK, len(sizes_N)))
        extreme += int(np.sum(np.abs(signs_PN @ sizes_N) >= reached))
    return (extreme + 1) / (PERMUTATIONS + 1), "sign flips, drawn"


def mcnemar_p(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of McNemar's test from the numbers of discordant pairs."""
    n, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(n, i) for i in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted by Holm's step-down method, in the same order."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def busy_seconds(intervals: Sequence[tuple[float, float]]) -> float:
    """Return the length of the union of `(start, end)` intervals, in seconds."""
    total, until = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _all_signs(count: int) -> npt.NDArray[np.float64]:
    """Return all 2**count combinations of `count` signs, one per row."""
    bits_PN = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    return 1.0 - 2.0 * bits_PN
