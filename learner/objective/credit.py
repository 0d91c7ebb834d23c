"""Credit by phase: what the trial and the execution of an episode are each worth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learner.credit_columns import CreditColumns
from learner.reward_config import SoftOverlong, TrialCost
from rollout.episode import is_correct


@dataclass(frozen=True, slots=True)
class PhaseRewards:
    """What is compared within groups; NaN for an episode without a reward.

    `episode_B` is for all tokens together; `trial_B` for trial and experience tokens, `execution_B`
    for execution tokens. `costs_B` is what the learner charged for trial calls, at least 0.
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
    """Split rewards, of which the two last arrays are taken, into the parts that phases answer for.

    With base = reward - malformed - trial_cost (the answer, mostly):
    episode = reward - cost - overlong;
    execution = base - overlong + malformed where an execution turn was malformed;
    trial = base - overlong + malformed where a trial turn was malformed + trial_cost - cost.
    A malformed penalty that no turn owns is taken from both.
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
    """Return what each episode pays for its trial calls; NaN answers are in no group and pay 0.

    cost = min(per_call * charged calls, most) in groups whose share of correct answers is at least
    min_success_rate, else 0. `excess` compares with the fewest calls among the group's successes:
    the group's own best effort, so that a policy that needs trials is never pushed below it.
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
        if rule.charge != "all":
            calls_G = calls_G * correct_G
        costs_B[indices] = np.minimum(rule.per_call * calls_G, rule.most)
    return costs_B


def overlong_penalties(sampled_B: NDArray[np.int64], rule: SoftOverlong) -> NDArray[np.float64]:
    """Return what each episode pays for its sampled tokens, at least 0 (arXiv 2503.14476, eq. 13).

    0 up to max_tokens - buffer_tokens, then a linear rise to `penalty` at max_tokens.
    """
    if rule.max_tokens == 0:
        return np.zeros(len(sampled_B))
    into_buffer_B = (sampled_B - (rule.max_tokens - rule.buffer_tokens)) / rule.buffer_tokens
    return rule.penalty * np.clip(into_buffer_B, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class TrialYield:
    """By how much one more unit of trial raised the chance of success; NaN where nothing tells.

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

    In each group the slope of answers over doses, b_g = Sxy / Sxx, whose variance is s^2 / Sxx with
    one s for all groups; pooled by inverse variance: sum Sxx * b_g / sum Sxx, the fixed-effects
    estimator. For a dose of 0 or 1, b_g is the difference of two means. The standard error allows
    for a noise that differs from episode to episode (HC3). What it is not: the effect of trials if
    the policy were made to try; a policy that goes on trying because it is lost lowers it.
    """
    groups = [np.array(group) for group in _groups(answers_B, groups_B)]
    informative = [group for group in groups if np.ptp(doses_B[group]) > 0]
    if not informative:
        return TrialYield(float("nan"), float("nan"), 0)
    doses = [doses_B[group] - doses_B[group].mean() for group in informative]
    answers = [answers_B[group] - answers_B[group].mean() for group in informative]
    precision_g = np.array([float(x @ x) for x in doses])
    per_group = [float(x @ y) / p for x, y, p in zip(doses, answers, precision_g, strict=True)]
    total = float(precision_g.sum())
    value = float(precision_g @ np.array(per_group)) / total
    variance = 0.0
    for x, y in zip(doses, answers, strict=True):
        leverage = 1 / len(x) + x**2 / total
        residual = (y - value * x) / np.maximum(1 - leverage, 1e-6)
        variance += float(x**2 @ residual**2)
    spare = sum(len(x) - 1 for x in doses) - 1
    error = np.sqrt(variance) / total if spare > 0 else float("nan")
    return TrialYield(value, float(error), len(informative), tuple(per_group))


def _groups(answers_B: NDArray[np.float64], groups_B: Sequence[str]) -> list[list[int]]:
    members: dict[str, list[int]] = {}
    for index in np.flatnonzero(np.isfinite(answers_B)).tolist():
        members.setdefault(groups_B[int(index)], []).append(int(index))
    return list(members.values())
