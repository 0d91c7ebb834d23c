"""Which episodes of a step are trained on, with what advantage and what weight per token."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learner.advantages import group_advantages
from learner.batch import EpisodeBatch, phase_weights
from learner.config import LearnerConfig
from rollout.episode import Outcome

TRUNCATED = "truncated"
GREEDY = "greedy"
NO_POLICY_TOKENS = "no_policy_tokens"


@dataclass(frozen=True, slots=True)
class Selection:
    """`kept` are indices of trained episodes; `reasons_B` names why another is left out.

    `weights_N` is the weight per token before aggregation, 0 without a behaviour logprob.
    """

    kept: tuple[int, ...]
    reasons_B: tuple[str, ...]
    advantages_B: NDArray[np.float32]
    weights_N: NDArray[np.float32]


def select(batch: EpisodeBatch, config: LearnerConfig) -> Selection:
    """Compute advantages over the whole step, then leave out what must not be trained on."""
    advantages = group_advantages(
        batch.rewards_B,
        batch.groups_B,
        config.advantage,
        config.advantage_eps,
        drop_zero_variance=config.drop_zero_variance,
    )
    weights_N = phase_weights(batch, config.phase_weights)
    weights_N[~np.isfinite(batch.logprobs_N)] = 0
    reasons_B = tuple(
        reason or _unusable(batch, index, weights_N, config)
        for index, reason in enumerate(advantages.reasons_B)
    )
    kept = tuple(index for index, reason in enumerate(reasons_B) if not reason)
    return Selection(kept, reasons_B, advantages.values_B, weights_N)


def _unusable(
    batch: EpisodeBatch, index: int, weights_N: NDArray[np.float32], config: LearnerConfig
) -> str:
    if config.mask_truncated and batch.outcomes_B[index] == Outcome.TRUNCATED:
        return TRUNCATED
    if batch.temperatures_B[index] <= 0:
        return GREEDY
    return "" if weights_N[batch.rows(index)].any() else NO_POLICY_TOKENS
