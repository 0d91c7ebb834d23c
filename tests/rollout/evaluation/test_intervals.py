"""95 % intervals against numbers worked out by hand, and how often they hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.evaluation.intervals import (
    NO_INTERVAL,
    Interval,
    difference_interval,
    independent_difference,
    interval_from_error,
    mean_interval,
    share_interval,
    t_quantile,
)
from rollout.evaluation.statistics import mean_estimate, paired, ratio_estimate


def of(values: list[float]) -> tuple[float, float]:
    found = share_interval([(value, 1.0) for value in values])
    assert found.low is not None and found.high is not None
    return found.low, found.high


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (29, 2.045), (127, 1.979), (5000, 1.960)],
)
def test_student_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(quantile, abs=5e-4)


def wilson(share: float, draws: float, t: float) -> tuple[float, float]:
    """Wilson 1927: the shares p with |share - p| = t sqrt(p (1 - p) / draws)."""
    a, b, c = draws + t * t, -(2 * draws * share + t * t), draws * share * share
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@pytest.mark.parametrize("solved", [0, 1, 4, 9, 10])
def test_of_single_attempts_it_is_wilsons_interval(solved: int) -> None:
    values = [1.0] * solved + [0.0] * (10 - solved)
    assert of(values) == pytest.approx(wilson(solved / 10, 10, t_quantile(0.975, 9)), abs=1e-9)


def test_tasks_that_were_all_solved_are_no_certainty() -> None:
    low, high = of([1.0] * 100)
    assert (low, high) == (pytest.approx(100 / (100 + t_quantile(0.975, 99) ** 2)), 1.0)
    # a hundred tasks of eight attempts each are still a hundred tasks
    assert of([1.0] * 100) == of([8 / 8] * 100)
    assert of([0.0] * 100) == pytest.approx((0.0, 1 - low))


def test_one_failed_attempt_of_800_makes_it_hardly_narrower() -> None:
    low, _ = of([7 / 8, *[1.0] * 99])
    assert 0.95 < low < 0.98 and abs(low - of([1.0] * 100)[0]) < 0.02


def test_many_attempts_that_agree_count_as_one_and_others_as_more() -> None:
    attempts_disagree = [0.25, 0.75] * 15
    attempts_agree = [0.0, 1.0] * 15
    widths = [high - low for low, high in map(of, (attempts_disagree, attempts_agree))]
    assert widths[0] == pytest.approx(widths[1] / 2, rel=0.1)


def test_equal_tasks_between_the_bounds_are_no_certainty_either() -> None:
    low, high = of([0.3] * 10)
    assert low < 0.2 and high > 0.4


@pytest.mark.parametrize("count", [0, 1])
def test_one_cluster_has_no_interval(count: int) -> None:
    assert share_interval([(1.0, 1.0)] * count) == NO_INTERVAL
    assert mean_interval([(7.0, 2.0)] * count) == NO_INTERVAL
    assert difference_interval([0.5] * count) == NO_INTERVAL
    assert interval_from_error(0.5, 0.1, count) == NO_INTERVAL


def test_a_figure_without_bounds_has_students_interval_or_none() -> None:
    found = mean_interval([(2.0, 1.0), (4.0, 1.0), (6.0, 1.0)])
    reach = t_quantile(0.975, 2) * math.sqrt(4 / 3)
    assert (found.low, found.high, found.method) == (
        pytest.approx(4 - reach),
        pytest.approx(4 + reach),
        "t",
    )
    assert mean_interval([(0.1, 1.0), (0.3, 3.0), (0.2, 2.0)]) == NO_INTERVAL


def test_tasks_with_few_calls_do_not_pass_for_tasks_with_many() -> None:
    """A task with nearly all calls leaves little to learn from the others."""
    even = share_interval([(1.0, 10.0), (0.0, 10.0)] * 10)
    uneven = share_interval([(10.0, 100.0), (0.0, 100.0), *[(0.0, 1.0)] * 18])
    assert even.high is not None and uneven.high is not None
    assert even.high < 0.15 < 0.4 < uneven.high
    # without a single error as well
    sure, unsure = (
        share_interval([(0.0, calls) for calls in each]) for each in ([10] * 20, [200] + [1] * 19)
    )
    assert sure.high is not None and unsure.high is not None
    assert sure.high < 0.2 < 0.8 < unsure.high


def test_the_mean_of_many_tasks_is_worth_more_than_one_draw() -> None:
    """Five seeds of 96 tasks, all solved: 480 draws, with the t of five seeds."""
    seeds = share_interval([(1.0, 1.0)] * 5, units=96)
    assert seeds.low == pytest.approx(480 / (480 + t_quantile(0.975, 4) ** 2))
    # where seeds differ, it is Student's interval over seeds, bent by the bounds
    values = [0.5, 0.62, 0.41, 0.55, 0.47]
    found = share_interval([(value, 1.0) for value in values], units=96)
    reach = t_quantile(0.975, 4) * float(np.std(values, ddof=1)) / math.sqrt(5)
    assert found.low == pytest.approx(np.mean(values) - reach, abs=0.01)
    assert found.high == pytest.approx(np.mean(values) + reach, abs=0.01)


def test_five_wins_of_five_prove_nothing() -> None:
    found = paired([1.0] * 5)
    assert (found.p, found.stderr) == (0.0625, 0.0)
    # u = (1 + d) / 2 = 1 of five pairs: 5 / (5 + 2.776^2), and d = 2 u - 1
    assert found.low is not None and found.low < 0
    assert found.low == pytest.approx(2 * 5 / (5 + 2.776**2) - 1, abs=1e-3)
    assert (found.high, found.method) == (1.0, "score")


def test_no_difference_in_any_pair_is_no_proof_of_none() -> None:
    low, high = (difference_interval([0.0] * 100).low, difference_interval([0.0] * 100).high)
    assert high is not None and low == pytest.approx(-high)
    assert 3 / 100 * 0.9 < high < 3 / 100 * 1.1, "the rule of three"


def test_differences_without_bounds_have_students_interval() -> None:
    found = paired([2.0, 4.0, 6.0], bounded=False)
    assert (found.method, found.high) == ("t", pytest.approx(4 + 4.3027 * 2 / 3**0.5, abs=1e-3))


def test_scores_outside_of_0_to_1_have_students_interval() -> None:
    assert mean_estimate([0.5, 1.5]).method == "t"
    assert mean_estimate([0.5, 1.0]).method == "score"
    assert mean_estimate([2.0, 2.0]).method == "none"


def test_of_two_independent_figures_squares_of_distances_add_up() -> None:
    # Newcombe 1998, method 10, his example (a): 56/70 against 48/80: 0.0524 to 0.3339
    first, second = (
        (share, Interval(*wilson(share, draws, 1.959964), "score"))
        for share, draws in ((48 / 80, 80), (56 / 70, 70))
    )
    found = independent_difference(first, second)
    assert (found.low, found.high) == (
        pytest.approx(0.0524, abs=1e-4),
        pytest.approx(0.3339, abs=1e-4),
    )
    assert independent_difference(first, (0.8, NO_INTERVAL)) == NO_INTERVAL


def test_from_a_standard_error_alone_it_is_the_same_where_many_tasks_carry_it() -> None:
    values = np.random.default_rng(3).beta(2, 2, 400).tolist()
    found, exact = mean_estimate(values), of(values)
    assert found.value is not None and found.stderr is not None
    told = interval_from_error(found.value, found.stderr, 400)
    assert (told.low, told.high) == pytest.approx(exact, abs=1e-6)
    assert interval_from_error(1.0, 0.0, 100).low == pytest.approx(of([1.0] * 100)[0])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12),
    st.sampled_from([1, 96]),
)
def test_an_interval_is_always_finite_and_holds_its_value(
    counts: list[tuple[int, int]], units: int
) -> None:
    clusters = [(float(min(pair)), float(max(pair))) for pair in counts]
    for share in (False, True):
        found = ratio_estimate(clusters, share=share, units=units)
        if found.low is None or found.high is None:
            assert found.method == "none" and (found.clusters < 2 or found.stderr is not None)
            assert not share or found.clusters < 2
            continue
        assert found.value is not None
        assert math.isfinite(found.low) and math.isfinite(found.high)
        assert found.low - 1e-9 <= found.value <= found.high + 1e-9
        assert not share or (0 <= found.low < found.high <= 1)


@pytest.mark.parametrize("tasks", [10, 30, 100])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
@pytest.mark.parametrize(("attempts", "correlation"), [(1, 0.0), (4, 0.3)])
def test_it_holds_the_true_share_often_enough(
    tasks: int, share: float, attempts: int, correlation: float
) -> None:
    """A fixed sample of what `tests/benchmarks/bench_intervals.py` measures at full size."""
    rng = np.random.default_rng(7)
    chance_NG = np.full((400, tasks), share)
    if correlation:
        scale = (1 - correlation) / correlation
        chance_NG = rng.beta(share * scale, (1 - share) * scale, (400, tasks))
    scores_NG = rng.binomial(attempts, chance_NG) / attempts
    held = [low <= share <= high for low, high in map(of, scores_NG.tolist())]
    assert sum(held) / len(held) >= 0.92


def test_errors_per_call_of_five_tasks_hold_the_truth_where_1_96_errors_do_not() -> None:
    rng = np.random.default_rng(11)
    held = normal = 0
    for _ in range(400):
        calls_G = 1 + rng.poisson(3, 5)
        errors_G = rng.binomial(calls_G, rng.beta(1, 1, 5))
        clusters = list(zip(errors_G.tolist(), calls_G.tolist(), strict=True))
        found = ratio_estimate(clusters, share=True)
        assert found.value is not None and found.stderr is not None
        assert found.low is not None and found.high is not None
        held += found.low <= 0.5 <= found.high
        normal += abs(found.value - 0.5) <= 1.96 * found.stderr
    assert held / 400 >= 0.95 > 0.88 > normal / 400
