"""Statistics of evaluations against numbers worked out by hand, and against enumeration."""

import math
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.errors import ConfigError
from rollout.evaluation.statistics import (
    best_of_k,
    busy_seconds,
    holm,
    majority_score,
    mcnemar_p,
    mean_estimate,
    paired,
    ratio_estimate,
    sign_flip_p,
)


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (4, 0), (5, 2), (8, 3), (10, 10), (12, 1)])
def test_pass_at_k_is_the_unbiased_estimator(n: int, c: int) -> None:
    scores = [1.0] * c + [0.0] * (n - c)
    for k in range(1, n + 1):
        by_equation = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
        assert best_of_k(scores, k) == pytest.approx(float(by_equation))
    assert best_of_k(scores, 1) == pytest.approx(c / n)


@settings(max_examples=30)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=7), st.data())
def test_best_of_k_is_the_mean_over_all_draws(scores: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    draws = [max(draw) for draw in combinations(scores, k)]
    assert best_of_k(scores, k) == pytest.approx(sum(draws) / len(draws))


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    assert best_of_k([1.0] + [0.0] * 1023, 512) == pytest.approx(0.5)


@pytest.mark.parametrize("k", [0, 3])
def test_more_draws_than_samples_are_refused(k: int) -> None:
    with pytest.raises(ConfigError, match="from 1 to the 2 samples"):
        best_of_k([0.0, 1.0], k)


def test_ratio_of_single_scores_has_the_usual_error() -> None:
    # s^2 = (0.75^2 + 3 * 0.25^2) / 3 = 0.25; s / sqrt(4) = 0.25
    found = mean_estimate([1.0, 0.0, 0.0, 0.0])
    assert (found.value, found.clusters) == (0.25, 4)
    assert found.stderr == pytest.approx(0.25)


def test_ratio_adds_residuals_up_within_a_task() -> None:
    # two scores a task: mean 0.5; residual sums +1, -1, 0; sqrt(2 * 3/2) / 6
    found = ratio_estimate([(2.0, 2.0), (0.0, 2.0), (1.0, 2.0)])
    assert (found.value, found.stderr) == (0.5, pytest.approx(math.sqrt(3.0) / 6))
    # unequal denominators: 3 errors of 6 calls; residuals 1 - 0.5, 2 - 2.5: sqrt(0.5 * 2) / 6
    found = ratio_estimate([(1.0, 1.0), (2.0, 5.0), (0.0, 0.0)])
    assert (found.value, found.clusters) == (0.5, 2)
    assert found.stderr == pytest.approx(1 / 6)


def test_too_few_clusters_leave_things_open() -> None:
    assert mean_estimate([]).value is None
    assert ratio_estimate([(0.0, 0.0)]).value is None
    alone = mean_estimate([0.5])
    assert (alone.value, alone.stderr, alone.clusters) == (0.5, None, 1)


@pytest.mark.parametrize(
    ("votes", "score"),
    [
        ([], 0.0),
        ([("", 0.0), ("", 0.0), ("7", 1.0)], 1.0),
        ([("7", 1.0), ("8", 0.0), (" 7 ", 1.0)], 1.0),
        ([("7", 1.0), ("8", 0.0), ("8", 0.0)], 0.0),
        ([("7", 1.0), ("8", 0.0)], 0.5),
        ([("7", 1.0), ("8", 0.0), ("9", 0.0)], 1 / 3),
    ],
)
def test_the_majority_decides(votes: list[tuple[str, float]], score: float) -> None:
    assert majority_score(votes) == pytest.approx(score)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    # 2 * 0.5^5; 2 * (1 + 10) / 1024; balanced
    [(5, 0, 0.0625), (9, 1, 22 / 1024), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_by_hand(wins: int, losses: int, p: float) -> None:
    assert mcnemar_p(wins, losses) == pytest.approx(p)
    differences = [1.0] * wins + [-1.0] * losses + [0.0] * 4
    assert sign_flip_p(differences)[0] == pytest.approx(p)


def brute_force_p(differences: list[float]) -> float:
    reached = abs(sum(differences)) - 1e-9
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in product((-1, 1), repeat=len(differences))
    ]
    return sum(total >= reached for total in sums) / len(sums)


@settings(max_examples=30)
@given(st.lists(st.sampled_from([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=8))
def test_sign_flips_are_those_of_brute_force(differences: list[float]) -> None:
    assert sign_flip_p(differences)[0] == pytest.approx(brute_force_p(differences))


def test_many_pairs_draw_their_flips_by_the_seed_and_come_close() -> None:
    differences = [0.5, -0.25] * 6 + [0.25, 0.125]
    p, test = sign_flip_p(differences, seed=1)
    assert test == "sign flips, drawn"
    assert sign_flip_p(differences, seed=1)[0] == p
    assert p != sign_flip_p(differences, seed=2)[0]
    assert p == pytest.approx(brute_force_p(differences), abs=0.02)


def test_sampled_p_values_are_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(0)
    ps = [sign_flip_p(rng.normal(size=16).tolist(), seed=i)[0] for i in range(40)]
    assert 0.35 < sum(ps) / len(ps) < 0.65
    assert min(ps) >= 1 / 10_001


def test_paired_differences_by_hand() -> None:
    # s^2 = (0.5625 + 3 * 0.0625) / 3 = 0.25; s / sqrt(4) = 0.25; the interval: Wilson's of
    # (1 + d) / 2 = 0.625, t(3), 8.11 draws (seen 0.1875 * 4 / 3, unseen 0.5 exp(-0.857))
    found = paired([1.0, 0.0, 0.0, 0.0])
    assert (found.mean, found.stderr) == (0.25, pytest.approx(0.25))
    assert (found.low, found.high) == pytest.approx((-0.6235, 0.8459), abs=1e-4)
    assert (found.wins, found.losses, found.p, found.test) == (1, 0, 1.0, "mcnemar")


def test_one_pair_has_a_difference_and_nothing_else() -> None:
    found = paired([0.5])
    assert (found.mean, found.stderr, found.low, found.high) == (0.5, None, None, None)
    assert found.p == 1.0


@pytest.mark.parametrize("differences", [[], [0.1, math.nan], [math.inf]])
def test_no_pairs_or_no_numbers_are_refused(differences: list[float]) -> None:
    with pytest.raises(ConfigError, match="finite paired differences"):
        paired(differences)


def test_holm_by_hand() -> None:
    # sorted 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.04 * 1, each at least the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_busy_seconds_leave_pauses_out() -> None:
    assert busy_seconds([(10.0, 14.0), (12.0, 20.0), (13.0, 13.5), (100.0, 101.0)]) == 11.0
    assert busy_seconds([]) == 0.0
