"""Credit by phase: separate rewards for the trials and the execution of an episode."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learner.credit_columns import CreditColumns
from learner.credit_config import SoftOverlong, TrialCost
from rollout.episode import is_correct


@dataclass(frozen=True, slots=True)
class PhaseRewards:
    """Rewards that are compared within groups; NaN for an episode without a reward.

    `episode_B` is for all tokens together, `trial_B` for trial and experience tokens, `execution_B`
    for execution tokens. `costs_B` is the learner's charge for trial calls, at least 0.
    """

    episode_B: NDArray[np.float64]
    trial_B: NDArray[np.float64]
    execution_B: NDArray[np.float64]
    costs_B: NDArray[np.float64]


def phase_rewards(
    rewards_B: NDArray[np.float64],
    columns: CreditColumns,
    costs_B: NDArray[np.float64],
    overlong_B: NDArray[np.float64],
) -> PhaseRewards:
    """Subtract the costs and length penalties from the rewards, and split them by phase.

    With base = reward - malformed - trial_cost (the answer, mostly):
    episode = reward - cost - overlong;
    execution = base - overlong + malformed where an execution turn was malformed;
    trial = base - overlong + malformed where a trial turn was malformed + trial_cost - cost.
    A malformed penalty that belongs to no recorded turn is subtracted from both.
    """
    base_B = rewards_B - columns.malformed_B - columns.trial_cost_B - overlong_B
    unowned_B = ~(columns.trial_faults_B | columns.execution_faults_B)
    return PhaseRewards(
        episode_B=rewards_B - costs_B - overlong_B,
        trial_B=base_B
        + columns.malformed_B * (columns.trial_faults_B | unowned_B)
        + columns.trial_cost_B
        - costs_B,
        execution_B=base_B + columns.malformed_B * (columns.execution_faults_B | unowned_B),
        costs_B=costs_B,
    )


def trial_costs(
    answers_B: NDArray[np.float64],
    calls_B: NDArray[np.int64],
    groups_B: Sequence[str],
    rule: TrialCost,
) -> NDArray[np.float64]:
    """Return the cost of each episode's trial calls; NaN answers are in no group and cost 0.

    cost = min(per_call * charged calls, most) in groups whose accuracy is at least
    min_success_rate, else 0. `excess` compares with the fewest calls among the group's successes:
    a number that the policy itself has shown to be enough, so that it is never pushed below it.
    """
    costs_B = np.zeros(len(answers_B))
    if rule.per_call == 0:
        return costs_B
    for indices in _groups(answers_B, groups_B):
        correct_G = is_correct(answers_B[indices])
        calls_G = calls_B[indices].astype(np.float64)
        if not correct_G.any() or correct_G.mean() < rule.min_success_rate:
            continue
        if rule.charge == "excess":
            calls_G = np.maximum(calls_G - calls_G[correct_G].min(), 0)
        # A failure pays nothing under "excess" and "successes": fewer trials would not have helped.
        if rule.charge != "all":
            calls_G = calls_G * correct_G
        costs_B[indices] = np.minimum(rule.per_call * calls_G, rule.most)
    return costs_B


def overlong_penalties(sampled_B: NDArray[np.int64], rule: SoftOverlong) -> NDArray[np.float64]:
    """Return the length penalty of each episode, at least 0 (arXiv 2503.14476, eq. 13).

    0 up to max_tokens - buffer_tokens, then a linear rise to `penalty` at max_tokens.
    """
    if rule.max_tokens == 0:
        return np.zeros(len(sampled_B))
    into_buffer_B = (sampled_B - (rule.max_tokens - rule.buffer_tokens)) / rule.buffer_tokens
    return rule.penalty * np.clip(into_buffer_B, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class TrialYield:
    """Estimated gain in the chance of success per unit of trial; NaN without any information.

    `per_group` are the estimates of the `groups` groups in which the dose varied.
    """

    value: float
    standard_error: float
    groups: int
    per_group: tuple[float, ...] = ()


def trial_yield(
    answers_B: NDArray[np.float64], doses_B: NDArray[np.float64], groups_B: Sequence[str]
) -> TrialYield:
    """Estimate the effect of `doses_B` (informative trial calls, or 1 for any) inside groups.

    In each group the slope of answers over doses is b_g = Sxy / Sxx, with variance s^2 / Sxx and
    one s for all groups. The slopes are pooled by inverse variance, sum Sxx * b_g / sum Sxx: the
    fixed-effects estimator. For a dose of 0 or 1, b_g is the difference of two means. The standard
    error is HC3, which allows a different noise variance for each episode. The result is not the
    effect of forcing the policy to try: a policy that keeps trying because it fails lowers it.
    """
    # Only comparisons within a group are used. A pooled regression would take easy tasks, with
    # few trials and many successes, for evidence that trials hurt.
    groups = [np.array(group) for group in _groups(answers_B, groups_B)]
    informative = [group for group in groups if np.ptp(doses_B[group]) > 0]
    if not informative:
        return TrialYield(float("nan"), float("nan"), 0)
    # Centring within the group is the fixed effect: it removes the group's difficulty.
    doses = [doses_B[group] - doses_B[group].mean() for group in informative]
    answers = [answers_B[group] - answers_B[group].mean() for group in informative]
    precision_g = np.array([float(x @ x) for x in doses])
    per_group = [float(x @ y) / p for x, y, p in zip(doses, answers, precision_g, strict=True)]
    total = float(precision_g.sum())
    value = float(precision_g @ np.array(per_group)) / total
    variance = 0.0
    for x, y in zip(doses, answers, strict=True):
        # Leverage of an episode on its own prediction: 1 / G from the group's mean, and its share
        # of the pooled slope. HC3 divides each residual by 1 - leverage; the floor covers a single
        # group of two episodes, which the model fits exactly.
        leverage = 1 / len(x) + x**2 / total
        residual = (y - value * x) / np.maximum(1 - leverage, 1e-6)
        variance += float(x**2 @ residual**2)
    # Degrees of freedom: each group costs one for its mean, the slope one more.
    spare = sum(len(x) - 1 for x in doses) - 1
    error = np.sqrt(variance) / total if spare > 0 else float("nan")
    return TrialYield(value, float(error), len(informative), tuple(per_group))


def _groups(answers_B: NDArray[np.float64], groups_B: Sequence[str]) -> list[list[int]]:
    members: dict[str, list[int]] = {}
    for index in np.flatnonzero(np.isfinite(answers_B)).tolist():
        members.setdefault(groups_B[int(index)], []).append(int(index))
    return list(members.values())
