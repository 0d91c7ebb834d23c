"""Group-relative advantages: how much better each episode was than its group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Estimator = Literal["grpo", "grpo_no_std", "rloo"]

NO_REWARD = "no_reward"
GROUP_OF_ONE = "group_of_one"
ZERO_VARIANCE = "zero_variance"


@dataclass(frozen=True, slots=True)
class Advantages:
    """`values_B` is NaN where `reasons_B` says why an episode is left out; else that is empty."""

    values_B: NDArray[np.float32]
    reasons_B: tuple[str, ...]


def group_advantages(
    rewards_B: NDArray[np.float32],
    groups_B: Sequence[str],
    estimator: Estimator,
    eps: float,
    *,
    drop_zero_variance: bool,
) -> Advantages:
    """Return r - baseline within each group, over episodes with a reward; a missing reward is NaN.

    `grpo` (arXiv 2402.03300, eq. 5): (r - mean) / (std + eps), std over the population;
    `grpo_no_std` (Dr. GRPO, arXiv 2503.20783): r - mean; `rloo` (arXiv 2402.14740): r - mean of
    the others.
    """
    values_B = np.full(len(rewards_B), np.nan, dtype=np.float32)
    reasons_B = [NO_REWARD] * len(rewards_B)
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups_B):
        if np.isfinite(rewards_B[index]):
            members.setdefault(group, []).append(index)
    for indices in members.values():
        rewards_G = rewards_B[indices].astype(np.float64)
        reason = _left_out(rewards_G, drop_zero_variance=drop_zero_variance)
        for index in indices:
            reasons_B[index] = reason
        if not reason:
            values_B[indices] = _advantages_of_group(rewards_G, estimator, eps)
    return Advantages(values_B, tuple(reasons_B))


def _left_out(rewards_G: NDArray[np.float64], *, drop_zero_variance: bool) -> str:
    if len(rewards_G) == 1:
        return GROUP_OF_ONE
    if drop_zero_variance and np.ptp(rewards_G) == 0:
        return ZERO_VARIANCE
    return ""


def _advantages_of_group(
    rewards_G: NDArray[np.float64], estimator: Estimator, eps: float
) -> NDArray[np.float64]:
    centred_G = rewards_G - rewards_G.mean()
    if estimator == "grpo":
        scale = rewards_G.std() + eps
        return centred_G / scale if scale > 0 else centred_G
    if estimator == "rloo":
        return centred_G * (len(rewards_G) / (len(rewards_G) - 1))
    return centred_G
