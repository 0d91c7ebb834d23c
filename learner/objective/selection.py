"""Which episodes of a step are trained on, with what advantage and what weight per token."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from learner.batch import EpisodeBatch, phase_weights, predictable, sampled_counts
from learner.config import LearnerConfig
from learner.objective.advantages import (
    NO_REWARD,
    AdvantageRule,
    Advantages,
    group_advantages,
    vary,
)
from learner.objective.credit import PhaseRewards, overlong_penalties, phase_rewards, trial_costs
from rollout.episode import Outcome, Phase

TRUNCATED = "truncated"
GREEDY = "greedy"
NO_POLICY_TOKENS = "no_policy_tokens"
NO_LOGPROBS = "no_logprobs"
BAD_LOGPROBS = "bad_logprobs"
OVERLONG = "overlong"
NON_FINITE = "non_finite"

_MAX_LOGPROB = 1e-3
"""A logprob above this is not a rounding error of zero."""


@dataclass(frozen=True, slots=True)
class Selection:
    """`kept` are indices of trained episodes; `reasons_B` gives the reason of the others, else ''.

    `advantages_N` has one value per token. `advantages_B` is the episode's advantage; under
    `credit = "phase"` it is that of the execution, and `trial_advantages_B`, else NaN, that of the
    trials. `weights_N` is the weight per token before aggregation, 0 without a behaviour logprob;
    `unscored` counts the tokens of trained episodes without one.
    """

    kept: tuple[int, ...]
    reasons_B: tuple[str, ...]
    advantages_B: NDArray[np.float32]
    trial_advantages_B: NDArray[np.float32]
    advantages_N: NDArray[np.float32]
    weights_N: NDArray[np.float32]
    rewards: PhaseRewards
    unscored: int

    def without(self, indices: Collection[int], reason: str) -> "Selection":
        """Return the selection with `indices` excluded for `reason`."""
        reasons_B = tuple(
            reason if index in indices else old for index, old in enumerate(self.reasons_B)
        )
        kept = tuple(index for index in self.kept if index not in indices)
        return replace(self, kept=kept, reasons_B=reasons_B)


def select(batch: EpisodeBatch, config: LearnerConfig, max_tokens: int | None = None) -> Selection:
    """Compute advantages over the whole step, then exclude what must not be trained on.

    Episodes that this policy cannot have sampled, or longer than `max_tokens`, are as if they had
    no reward: they are excluded from the baselines too.
    """
    invalid_B = _invalid_reasons(batch, max_tokens)
    rewards = shaped_rewards(batch, config, invalid_B)
    whole, trial = _advantages(batch, rewards, config)
    weights_N = phase_weights(batch, config.phase_weights)
    scored_N = np.isfinite(batch.logprobs_N)
    asked_N = weights_N > 0
    weights_N[~scored_N] = 0
    reasons_B = tuple(
        invalid or reason or _unusable(batch, index, weights_N, config)
        for index, (invalid, reason) in enumerate(zip(invalid_B, whole.reasons_B, strict=True))
    )
    kept = tuple(index for index, reason in enumerate(reasons_B) if not reason)
    kept_N = np.repeat([not reason for reason in reasons_B], batch.lengths_B)
    return Selection(
        kept=kept,
        reasons_B=reasons_B,
        advantages_B=whole.values_B,
        trial_advantages_B=trial.values_B,
        advantages_N=_per_token(batch, whole, trial, config),
        weights_N=weights_N,
        rewards=rewards,
        unscored=int((asked_N & ~scored_N & kept_N).sum()),
    )


def shaped_rewards(
    batch: EpisodeBatch, config: LearnerConfig, invalid_B: Sequence[str]
) -> PhaseRewards:
    """Return the rewards to compare, NaN where `invalid_B` gives a reason."""
    invalid = np.array([bool(reason) for reason in invalid_B])
    rewards_B = np.where(invalid, np.nan, batch.rewards_B.astype(np.float64))
    answers_B = np.where(np.isfinite(rewards_B), batch.credit.answers_B, np.nan)
    costs_B = trial_costs(answers_B, batch.credit.trial_calls_B, batch.groups_B, config.trial_cost)
    overlong_B = overlong_penalties(sampled_counts(batch), config.overlong)
    return phase_rewards(rewards_B, batch.credit, costs_B, overlong_B)


def varies(batch: EpisodeBatch, config: LearnerConfig, max_tokens: int | None = None) -> bool:
    """Return whether the rewards of one group differ, so that it has a gradient.

    Episodes that `select` excludes from the baselines have no reward here either.
    """
    if config.advantage == "reinforce_pp":
        return True
    rewards = shaped_rewards(batch, config, _invalid_reasons(batch, max_tokens))
    if config.credit == "episode":
        return vary(rewards.episode_B)
    trains_trial, trains_execution = config.phase_weights.parts
    return (trains_trial and vary(rewards.trial_B)) or (
        trains_execution and vary(rewards.execution_B)
    )


def _advantages(
    batch: EpisodeBatch, rewards: PhaseRewards, config: LearnerConfig
) -> tuple[Advantages, Advantages]:
    """Return the advantages of episodes (or their execution), and of trials (NaN if the same)."""
    rule = AdvantageRule(
        config.advantage, config.advantage_eps, config.advantage_ddof, config.drop_zero_variance
    )

    def compare(rewards_B: NDArray[np.float64]) -> Advantages:
        return group_advantages(rewards_B, batch.groups_B, rule)

    if config.credit == "episode":
        nothing = np.full(len(batch), np.nan, np.float32)
        return compare(rewards.episode_B), Advantages(nothing, (NO_REWARD,) * len(batch))
    execution, trial = compare(rewards.execution_B), compare(rewards.trial_B)
    # A group trains if one of the two parts varies; the part that does not gets advantage 0. A part
    # without a weight in the loss decides nothing.
    trains_trial, trains_execution = config.phase_weights.parts
    if not trains_execution:
        reasons_B = trial.reasons_B
    elif not trains_trial:
        reasons_B = execution.reasons_B
    else:
        reasons_B = tuple(
            "" if not (mine and other) else mine
            for mine, other in zip(execution.reasons_B, trial.reasons_B, strict=True)
        )
    in_loss = np.array([not reason for reason in reasons_B])

    def filled(part: Advantages) -> NDArray[np.float32]:
        return np.where(in_loss & np.isnan(part.values_B), np.float32(0), part.values_B)

    return Advantages(filled(execution), reasons_B), Advantages(filled(trial), reasons_B)


def _per_token(
    batch: EpisodeBatch, whole: Advantages, trial: Advantages, config: LearnerConfig
) -> NDArray[np.float32]:
    whole_N = np.repeat(whole.values_B, batch.lengths_B)
    if config.credit == "episode":
        return whole_N
    in_trial_N = np.isin(batch.phases_N, (Phase.TRIAL, Phase.EXPERIENCE))
    return np.where(in_trial_N, np.repeat(trial.values_B, batch.lengths_B), whole_N)


def _invalid_reasons(batch: EpisodeBatch, max_tokens: int | None) -> list[str]:
    sampled_N = predictable(batch)
    return [_invalid(batch, index, sampled_N, max_tokens) for index in range(len(batch))]


def _invalid(
    batch: EpisodeBatch, index: int, sampled_N: NDArray[np.bool_], max_tokens: int | None
) -> str:
    """Return why this policy cannot have sampled the episode, or an empty string."""
    if not np.isfinite(batch.rewards_B[index]):
        return ""  # an infrastructure failure, which has a reason of its own
    row = batch.rows(index)
    if max_tokens is not None and batch.longest(index) > max_tokens:
        return OVERLONG
    logprobs_T = batch.logprobs_N[row][sampled_N[row]]
    if np.isinf(logprobs_T).any() or (logprobs_T > _MAX_LOGPROB).any():
        return BAD_LOGPROBS
    return NO_LOGPROBS if np.isnan(logprobs_T).all() and len(logprobs_T) else ""


def _unusable(
    batch: EpisodeBatch, index: int, weights_N: NDArray[np.float32], config: LearnerConfig
) -> str:
    if config.mask_truncated and batch.outcomes_B[index] == Outcome.TRUNCATED:
        return TRUNCATED
    if batch.temperatures_B[index] <= 0:
        return GREEDY
    return "" if weights_N[batch.rows(index)].any() else NO_POLICY_TOKENS
