import math

import numpy as np
import pytest

from learner.config import Estimator
from learner.objective.advantages import AdvantageRule, Advantages, group_advantages

TWO_GROUPS = [1.0, 0.0, 1.0, 1.0, 0.5, 0.5]  # a: 1 0 1 1 (mean 0.75); b: 0.5 0.5, no variance


def advantages(
    rewards: list[float] | np.ndarray,
    estimator: Estimator = "grpo",
    eps: float = 0.0,
    *,
    groups: str = "",
    ddof: int = 0,
    drop: bool = True,
) -> Advantages:
    rule = AdvantageRule(estimator, eps, ddof, drop_zero_variance=drop)
    rewards_B = rewards if isinstance(rewards, np.ndarray) else np.array(rewards, np.float32)
    return group_advantages(rewards_B, groups or "a" * len(rewards), rule)


def test_grpo_divides_by_population_std_plus_eps() -> None:
    result = advantages([1.0, 0.0, 0.0, 0.0], eps=0.1)
    std = math.sqrt(3) / 4
    expected = [0.75 / (std + 0.1)] + [-0.25 / (std + 0.1)] * 3
    np.testing.assert_allclose(result.values_B, expected, rtol=1e-6)
    assert result.reasons_B == ("",) * 4


def test_the_std_may_be_that_of_a_sample() -> None:
    # mean 1/4, squares (9 + 1 + 1 + 1)/16 = 3/4, / (4 - 1) = 1/4, std 1/2
    result = advantages([1.0, 0.0, 0.0, 0.0], ddof=1)
    np.testing.assert_allclose(result.values_B, [1.5, -0.5, -0.5, -0.5], rtol=1e-6)


def test_without_std_the_advantage_is_the_centred_reward() -> None:
    result = advantages([1.0, 0.0, 0.5], "grpo_no_std", eps=0.1)
    np.testing.assert_allclose(result.values_B, [0.5, -0.5, 0.0], atol=1e-7)


def test_rloo_compares_with_the_mean_of_the_others() -> None:
    result = advantages([1.0, 0.0, 0.5], "rloo", eps=0.1)
    np.testing.assert_allclose(result.values_B, [1 - 0.25, 0 - 0.75, 0.5 - 0.5], atol=1e-7)


def test_maxrl_divides_by_the_chance_of_success() -> None:
    # mean 1/4: (1 - 1/4) / (1/4) = 3, (0 - 1/4) / (1/4) = -1; with eps 1/4 half of it
    assert advantages([1, 0, 0, 0], "maxrl").values_B.tolist() == [3, -1, -1, -1]
    assert advantages([1, 0, 0, 0], "maxrl", eps=0.25).values_B.tolist() == [1.5, -0.5, -0.5, -0.5]


def test_maxrl_never_turns_a_sign_where_the_mean_is_below_zero() -> None:
    # mean -0.5, so that eps alone divides: (0.5, -0.5) / 0.25
    assert advantages([0.0, -1.0], "maxrl", eps=0.25).values_B.tolist() == [2.0, -2.0]


def test_the_std_may_be_that_of_all_rewards() -> None:
    # all: mean 4/6; squares sum 1 + 1 + 1 + 1/4 + 1/4 = 7/2; variance 7/12 - 4/9 = 5/36
    result = advantages(TWO_GROUPS, "grpo_batch_std", groups="aaaabb")
    std = math.sqrt(5) / 6
    np.testing.assert_allclose(
        result.values_B[:4], [0.25 / std, -0.75 / std, 0.25 / std, 0.25 / std], rtol=1e-6
    )
    assert result.reasons_B[4:] == ("zero_variance",) * 2


@pytest.mark.parametrize("drop", [True, False])
def test_gpg_takes_the_mean_over_groups_that_vary_once(drop: bool) -> None:
    # B = 7 of which 2 are equal and 1 is alone, never in the mean: gradient = sum over a / 4
    rewards, gradients = [*TWO_GROUPS, 1.0], np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    result = advantages(rewards, "gpg", groups="aaaabbc", drop=drop)
    averaged = [index for index, reason in enumerate(result.reasons_B) if not reason]
    assert averaged == [0, 1, 2, 3] if drop else [0, 1, 2, 3, 4, 5]
    found = (result.values_B * gradients)[averaged].mean()
    assert found == pytest.approx((0.25 * 1 - 0.75 * 2 + 0.25 * 3 + 0.25 * 4) / 4)


def test_gpg_makes_up_for_groups_that_are_counted_and_teach_nothing() -> None:
    # 6 episodes in the mean, 4 of them in groups that vary: centred rewards times 6/4
    result = advantages(TWO_GROUPS, "gpg", groups="aaaabb", drop=False)
    np.testing.assert_allclose(result.values_B, [0.375, -1.125, 0.375, 0.375, 0, 0])


def test_reinforce_pp_baseline_whitens_over_the_step() -> None:
    # centred in groups: 1/4 -3/4 1/4 1/4 0 0; mean 0; squares 12/16; / 6 = 1/8
    result = advantages(TWO_GROUPS, "reinforce_pp_baseline", groups="aaaabb", drop=False)
    std = math.sqrt(1 / 8)
    np.testing.assert_allclose(
        result.values_B, np.array([0.25, -0.75, 0.25, 0.25, 0, 0]) / std, rtol=1e-6
    )


def test_reinforce_pp_knows_no_groups() -> None:
    # mean 2/3, std sqrt(5)/6 as above; the group without variance and the lone one take part
    result = advantages(TWO_GROUPS, "reinforce_pp", groups="aaaabc")
    std = math.sqrt(5) / 6
    expected = [1 / 3, -2 / 3, 1 / 3, 1 / 3, -1 / 6, -1 / 6]
    np.testing.assert_allclose(result.values_B, np.array(expected) / std, rtol=1e-5)
    assert result.reasons_B == ("",) * 6


def test_groups_are_apart_whatever_their_order() -> None:
    result = advantages([1.0, 10.0, 0.0, 20.0], "grpo_no_std", groups="abab")
    np.testing.assert_allclose(result.values_B, [0.5, -5.0, -0.5, 5.0])


ESTIMATORS: list[Estimator] = [
    "grpo",
    "grpo_no_std",
    "grpo_batch_std",
    "rloo",
    "maxrl",
    "gpg",
    "reinforce_pp_baseline",
    "reinforce_pp",
]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_episode_without_reward_changes_no_other(estimator: Estimator) -> None:
    alone = advantages(TWO_GROUPS, estimator, 0.1, groups="aaaabb")
    beside = advantages([*TWO_GROUPS, *[np.nan] * 3], estimator, 0.1, groups="aaaabbabc")
    np.testing.assert_array_equal(beside.values_B[:6], alone.values_B)
    assert np.isnan(beside.values_B[6:]).all()
    assert beside.reasons_B[6:] == ("no_reward",) * 3


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nothing_but_missing_rewards_is_no_error(estimator: Estimator) -> None:
    assert advantages([np.nan] * 2, estimator).reasons_B == ("no_reward",) * 2


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [([0.3], "group_of_one"), ([0.3, np.nan], "group_of_one"), ([1, 1], "zero_variance")],
)
def test_groups_that_teach_nothing_are_left_out_by_name(rewards: list[float], reason: str) -> None:
    result = advantages(rewards, eps=0.1)
    assert result.reasons_B[0] == reason
    assert np.isnan(result.values_B[0])


def test_zero_variance_may_stay_with_advantage_zero() -> None:
    result = advantages([1.0, 1.0], drop=False)
    np.testing.assert_array_equal(result.values_B, [0, 0])
    assert result.reasons_B == ("", "")


NOISE = [0.1, 0.1 + 3.7e-9, 0.1 + 1.9e-9, 0.1]
"""What is left of equal rewards when parts of them were added and subtracted in float32."""


@pytest.mark.parametrize("eps", [0.0, 1e-9, 1e-6, 0.1])
@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nothing_is_made_of_rounding(estimator: Estimator, drop: bool, eps: float) -> None:
    """Beside a group that varies, and alone; large rewards have larger roundings."""
    alone = advantages(np.array(NOISE), estimator, eps, drop=drop)
    reasons = ("zero_variance" if drop else "",) * 4
    assert alone.reasons_B == reasons
    assert not np.nan_to_num(alone.values_B).any()
    if estimator == "reinforce_pp":
        return
    for noise in (np.array(NOISE), np.array([500.0, 500.0001, 500.0, 500.0])):
        rewards = np.array([1.0, 0.0, 0.0, 0.0, *noise])
        beside = advantages(rewards, estimator, eps, groups="aaaabbbb", drop=drop)
        assert beside.reasons_B[4:] == reasons
        assert not np.nan_to_num(beside.values_B[4:]).any()
        assert np.abs(beside.values_B[:4]).max() > 0


def test_a_small_difference_is_no_rounding() -> None:
    assert advantages(np.array([0.1, 0.1 + 3e-6]), "grpo_no_std").reasons_B == ("", "")
    assert advantages(np.array([0.1, 0.1 + 3e-6])).values_B.tolist() == pytest.approx([-1, 1])


def test_maxrl_does_not_divide_by_what_is_left_of_opposite_rewards() -> None:
    # in float32, 0.3 - 3 * 0.1 is 1.2e-8 / 4 and not 0
    rewards = np.array([0.3, -0.1, -0.1, -0.1], np.float32)
    assert 0 < rewards.astype(np.float64).mean() < 1e-8
    np.testing.assert_allclose(advantages(rewards, "maxrl").values_B, rewards, atol=1e-7)
