import numpy as np
import pytest

from learner.credit_columns import CreditColumns
from learner.credit_config import SoftOverlong, TrialCost
from learner.objective.credit import (
    overlong_penalties,
    phase_rewards,
    trial_costs,
    trial_yield,
)

GROUPS = "aaaabbbb"
ANSWERS = np.array([1.0, 1, 1, 0, 1, 0, 0, np.nan])  # a: 3 of 4 right; b: 1 of 3
CALLS = np.array([2, 3, 5, 9, 4, 1, 1, 50])


def columns(**given: list[float]) -> CreditColumns:
    zeros = np.zeros(4)
    return CreditColumns(
        answers_B=np.array(given.get("answers", [1.0, 1, 0, 0])),
        malformed_B=np.array(given.get("malformed", [0.0] * 4)),
        trial_cost_B=np.array(given.get("trial_cost", [0.0] * 4)),
        trial_calls_B=zeros.astype(np.int64),
        distinct_B=zeros.astype(np.int64),
        trial_faults_B=np.array(given.get("trial_faults", [0] * 4), bool),
        execution_faults_B=np.array(given.get("execution_faults", [0] * 4), bool),
    )


def test_each_phase_answers_for_its_own_part() -> None:
    """One clean; malformed in a trial; malformed in execution, with trials paid; nobody's fault."""
    read = columns(
        malformed=[0, -0.1, -0.1, -0.1],
        trial_cost=[0, 0, -0.2, 0],
        trial_faults=[0, 1, 0, 0],
        execution_faults=[0, 0, 1, 0],
    )
    rewards = np.array([1.0, 0.9, -0.3, -0.1])
    found = phase_rewards(rewards, read, np.array([0.0, 0.05, 0, 0]), np.array([0.5, 0, 0, 0]))
    # base = reward - malformed - trial cost - overlong: 0.5, 1, 0, 0
    np.testing.assert_allclose(found.episode_B, [0.5, 0.85, -0.3, -0.1])
    np.testing.assert_allclose(found.execution_B, [0.5, 1.0, -0.1, -0.1])
    np.testing.assert_allclose(found.trial_B, [0.5, 0.85, -0.2, -0.1])


@pytest.mark.parametrize(
    ("charge", "expected"),
    [
        # group a is right 3 of 4 times; the fewest calls among its successes are 2
        ("all", [0.2, 0.3, 0.5, 0.5, 0, 0, 0, 0]),  # 9 calls meet the bound of 0.5
        ("successes", [0.2, 0.3, 0.5, 0, 0, 0, 0, 0]),
        ("excess", [0.0, 0.1, 0.3, 0, 0, 0, 0, 0]),
    ],
)
def test_trial_costs_fall_on_groups_that_know(charge: str, expected: list[float]) -> None:
    rule = TrialCost.model_validate({"per_call": 0.1, "charge": charge})
    np.testing.assert_allclose(trial_costs(ANSWERS, CALLS, GROUPS, rule), expected)


def test_a_lower_threshold_charges_weaker_groups() -> None:
    rule = TrialCost(per_call=0.1, charge="successes", min_success_rate=0.3)
    assert trial_costs(ANSWERS, CALLS, GROUPS, rule)[4] == pytest.approx(0.4)
    assert not trial_costs(ANSWERS, CALLS, GROUPS, TrialCost()).any()


def test_no_group_without_a_success_is_ever_charged() -> None:
    rule = TrialCost(per_call=0.1, charge="all", min_success_rate=0)
    assert not trial_costs(np.zeros(4), np.arange(4), "aaaa", rule).any()


def test_soft_overlong_punishment() -> None:
    # 0 up to 80, then (n - 80) / 20 of 0.5, all of it from 100
    rule = SoftOverlong(max_tokens=100, buffer_tokens=20, penalty=0.5)
    found = overlong_penalties(np.array([10, 80, 90, 100, 500]), rule)
    np.testing.assert_allclose(found, [0, 0, 0.25, 0.5, 0.5])
    assert not overlong_penalties(np.array([10_000]), SoftOverlong()).any()


def test_the_yield_is_the_pooled_slope() -> None:
    # a: doses 0 1 2, answers 0 0 1: Sxy = 1, Sxx = 2, slope 1/2
    # b: doses 0 4, answers 1 0:    Sxy = -2, Sxx = 8, slope -1/4
    # pooled (2 * 1/2 + 8 * -1/4) / 10 = -1/10; c tells nothing
    found = trial_yield(
        np.array([0.0, 0, 1, 1, 0, 1, 0]), np.array([0.0, 1, 2, 0, 4, 3, 3]), "aaabbcc"
    )
    assert found.per_group == pytest.approx((0.5, -0.25))
    assert found.value == pytest.approx(-0.1)
    assert found.groups == 2


def test_a_yield_of_any_trial_is_a_difference_of_means() -> None:
    found = trial_yield(np.array([1.0, 1, 0, 0, 0]), np.array([1.0, 1, 1, 0, 0]), "aaaaa")
    assert found.value == pytest.approx(2 / 3 - 0)


def test_no_yield_where_all_tried_alike() -> None:
    found = trial_yield(np.array([1.0, 0]), np.array([2.0, 2]), "aa")
    assert np.isnan(found.value)
    assert np.isnan(found.standard_error)
    assert found.groups == 0


@pytest.mark.parametrize("effect", [0.0, 0.08])
def test_the_yield_is_unbiased_and_its_interval_covers(effect: float) -> None:
    """300 draws of 12 groups of 8; chances differ by group, each trial adds `effect`."""
    generator = np.random.default_rng(7)
    groups = [str(index // 8) for index in range(96)]
    estimates, covered = [], 0
    for _ in range(300):
        base = np.repeat(generator.uniform(0.05, 0.55, 12), 8)
        doses = generator.integers(0, 5, 96).astype(float)
        answers = (generator.random(96) < base + effect * doses).astype(float)
        found = trial_yield(answers, doses, groups)
        estimates.append(found.value)
        covered += abs(found.value - effect) <= 1.96 * found.standard_error
    spread = np.std(estimates)
    assert abs(np.mean(estimates) - effect) < 3 * spread / np.sqrt(300)
    assert 0.92 <= covered / 300 <= 0.985


def test_groups_of_different_difficulty_do_not_pass_for_yield() -> None:
    """Hard groups try more and fail more; trials have no effect. A plain slope would be -0.2."""
    generator = np.random.default_rng(3)
    hard = np.repeat(np.arange(40) % 2, 8)
    doses = hard * 3 + generator.integers(0, 3, 320)
    answers = (generator.random(320) < np.where(hard, 0.1, 0.9)).astype(float)
    found = trial_yield(answers, doses.astype(float), [str(i // 8) for i in range(320)])
    assert abs(found.value) < 3 * found.standard_error < 0.1
    assert np.polyfit(doses, answers, 1)[0] < -0.15
