import math

import numpy as np
import pytest

from learner.advantages import group_advantages

REWARDS = np.array([1.0, 0.0, 0.0, 1.0, np.nan], dtype=np.float32)


def test_grpo_divides_by_population_std_plus_eps() -> None:
    result = group_advantages(
        np.array([1.0, 0.0, 0.0, 0.0], np.float32), ["a"] * 4, "grpo", 0.1, drop_zero_variance=True
    )
    std = math.sqrt(3) / 4
    expected = [0.75 / (std + 0.1)] + [-0.25 / (std + 0.1)] * 3
    np.testing.assert_allclose(result.values_B, expected, rtol=1e-6)
    assert result.reasons_B == ("",) * 4


def test_without_std_the_advantage_is_the_centred_reward() -> None:
    result = group_advantages(
        np.array([1.0, 0.0, 0.5], np.float32),
        ["a"] * 3,
        "grpo_no_std",
        0.1,
        drop_zero_variance=True,
    )
    np.testing.assert_allclose(result.values_B, [0.5, -0.5, 0.0], atol=1e-7)


def test_rloo_compares_with_the_mean_of_the_others() -> None:
    result = group_advantages(
        np.array([1.0, 0.0, 0.5], np.float32), ["a"] * 3, "rloo", 0.1, drop_zero_variance=True
    )
    np.testing.assert_allclose(result.values_B, [1 - 0.25, 0 - 0.75, 0.5 - 0.5], atol=1e-7)


def test_groups_are_apart_whatever_their_order() -> None:
    rewards = np.array([1.0, 10.0, 0.0, 20.0], np.float32)
    result = group_advantages(
        rewards, ["a", "b", "a", "b"], "grpo_no_std", 0, drop_zero_variance=True
    )
    np.testing.assert_allclose(result.values_B, [0.5, -5.0, -0.5, 5.0])


def test_an_episode_without_reward_is_in_no_baseline() -> None:
    result = group_advantages(REWARDS, ["a"] * 5, "grpo_no_std", 0, drop_zero_variance=True)
    np.testing.assert_allclose(result.values_B[:4], [0.5, -0.5, -0.5, 0.5])
    assert np.isnan(result.values_B[4])
    assert result.reasons_B[4] == "no_reward"


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [([0.3], "group_of_one"), ([0.3, np.nan], "group_of_one"), ([1, 1], "zero_variance")],
)
def test_groups_that_teach_nothing_are_left_out_by_name(rewards: list[float], reason: str) -> None:
    result = group_advantages(
        np.array(rewards, np.float32), ["a"] * len(rewards), "grpo", 0.1, drop_zero_variance=True
    )
    assert result.reasons_B[0] == reason
    assert np.isnan(result.values_B[0])


def test_zero_variance_may_stay_with_advantage_zero() -> None:
    result = group_advantages(
        np.ones(2, np.float32), ["a"] * 2, "grpo", 0.0, drop_zero_variance=False
    )
    np.testing.assert_array_equal(result.values_B, [0, 0])
    assert result.reasons_B == ("", "")
