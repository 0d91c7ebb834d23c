"""Group-relative advantages: how much better each episode was than its group."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learner.config import Estimator

NO_REWARD = "no_reward"
GROUP_OF_ONE = "group_of_one"
ZERO_VARIANCE = "zero_variance"
RESIDUE = 1e-6
"""Largest spread of a group's rewards that is rounding and no difference; above a reward of 1 it
grows with the largest one. Rewards come in float32, and parts of them are added and subtracted."""


@dataclass(frozen=True, slots=True)
class AdvantageRule:
    """Estimator and its options; `eps` is added to the divisor, `ddof` = 1 is the sample std."""

    estimator: Estimator
    eps: float
    ddof: int = 0
    drop_zero_variance: bool = True


@dataclass(frozen=True, slots=True)
class Advantages:
    """`reasons_B` is the reason why an episode is excluded (`values_B` is NaN there), else ''."""

    values_B: NDArray[np.float32]
    reasons_B: tuple[str, ...]


def vary(rewards_G: NDArray[np.float64]) -> bool:
    """Return whether rewards of a group differ by more than RESIDUE; missing ones do not count."""
    known = rewards_G[np.isfinite(rewards_G)]
    return bool(len(known) and np.ptp(known) > RESIDUE * max(1.0, np.abs(known).max()))


def group_advantages(
    rewards_B: NDArray[np.float32] | NDArray[np.float64],
    groups_B: Sequence[str],
    rule: AdvantageRule,
) -> Advantages:
    """Return the advantages of episodes with a reward; a missing reward (NaN) is in no baseline.

    Within groups: `grpo` (arXiv 2402.03300, eq. 5): (r - mean) / (std + eps); `grpo_no_std`
    (Dr. GRPO, arXiv 2503.20783): r - mean; `rloo` (arXiv 2402.14740): r - mean of the others;
    `maxrl` (arXiv 2602.02710): (r - mean) / (mean + eps), for rewards that are successes.
    Over all B: `grpo_batch_std` (Lite PPO, arXiv 2508.08221): (r - mean of group) / (std of all
    rewards + eps); `gpg` (arXiv 2504.02546): (r - mean of group) * (episodes in the loss) /
    (episodes of groups that vary), so that the loss is the mean over the latter whether or not the
    others are excluded from it; `reinforce_pp_baseline` (arXiv 2501.03262): r - mean of group, then
    centred and divided by its std + eps over all; `reinforce_pp` (same): (r - mean) / (std + eps)
    over all, so groups of one and groups without variance take part.
    A group that does not `vary` has advantages of exactly 0, whatever `eps` is.
    """
    rewards = rewards_B.astype(np.float64)
    values_B = np.full(len(rewards), np.nan)
    reasons_B = [NO_REWARD] * len(rewards)
    groups = _members(rewards, groups_B, whole=rule.estimator == "reinforce_pp")
    for indices in groups:
        reason = _left_out(rewards[indices], drop_zero_variance=rule.drop_zero_variance)
        for index in indices:
            reasons_B[index] = reason
        values_B[indices] = _within_group(rewards[indices], rule)
    _scale_over_all(values_B, rewards, groups, rule)
    if rule.estimator == "gpg":
        values_B *= _gpg_scale(rewards, groups, reasons_B)
    for indices in groups:
        if not vary(rewards[indices]):
            values_B[indices] = 0.0  # not what is left of rounding, divided by what is left of it
    # Excluded last: episodes of groups without variance still count in statistics over the step.
    values_B[[bool(reason) for reason in reasons_B]] = np.nan
    return Advantages(values_B.astype(np.float32), tuple(reasons_B))


def _members(
    rewards_B: NDArray[np.float64], groups_B: Sequence[str], *, whole: bool
) -> list[list[int]]:
    members: dict[str, list[int]] = {}
    for index in np.flatnonzero(np.isfinite(rewards_B)).tolist():
        members.setdefault("" if whole else groups_B[int(index)], []).append(int(index))
    return list(members.values())


def _left_out(rewards_G: NDArray[np.float64], *, drop_zero_variance: bool) -> str:
    if len(rewards_G) == 1:
        return GROUP_OF_ONE
    if drop_zero_variance and not vary(rewards_G):
        return ZERO_VARIANCE
    return ""


def _within_group(rewards_G: NDArray[np.float64], rule: AdvantageRule) -> NDArray[np.float64]:
    count, mean = len(rewards_G), rewards_G.mean()
    centred_G = rewards_G - mean
    if rule.estimator in ("grpo", "reinforce_pp"):
        return _divided(centred_G, _std(rewards_G, rule.ddof) + rule.eps)
    if rule.estimator == "maxrl":
        # A mean of opposite rewards may be nothing but rounding, and is then no divisor.
        return _divided(centred_G, (mean if mean > RESIDUE else 0.0) + rule.eps)
    if rule.estimator == "rloo" and count > 1:
        # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
        return centred_G * (count / (count - 1))
    return centred_G


def _scale_over_all(
    values_B: NDArray[np.float64],
    rewards_B: NDArray[np.float64],
    groups: Sequence[Sequence[int]],
    rule: AdvantageRule,
) -> None:
    """Apply, in place, the part of an estimator that uses all episodes of the step."""
    valid = [index for indices in groups for index in indices]
    if not valid:
        return
    if rule.estimator == "grpo_batch_std":
        values_B[valid] = _divided(values_B[valid], _std(rewards_B[valid], rule.ddof) + rule.eps)
    elif rule.estimator == "reinforce_pp_baseline":
        centred = values_B[valid] - values_B[valid].mean()
        values_B[valid] = _divided(centred, _std(values_B[valid], rule.ddof) + rule.eps)


def _gpg_scale(
    rewards_B: NDArray[np.float64], groups: Sequence[Sequence[int]], reasons_B: Sequence[str]
) -> float:
    """Return B / (B - M) of GPG: of B episodes in the mean, M are in groups of equal rewards.

    GPG's gradient is the sum over the B - M others divided by B - M. If the M are excluded from the
    mean already, the factor is 1.
    """
    averaged = sum(not reason for reason in reasons_B)
    varying = sum(len(indices) for indices in groups if vary(rewards_B[list(indices)]))
    return averaged / max(varying, 1)


def _std(values: NDArray[np.float64], ddof: int) -> float:
    return float(values.std(ddof=ddof)) if len(values) > ddof else 0.0


def _divided(values: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    return values / scale if scale > 0 else values
