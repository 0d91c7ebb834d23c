"""Off-policy corrections between the sampler's and the learner's logprobs, and their mismatch."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from learner.config import CorrectionMode
from learner.objective.losses import MAX_LOG_RATIO, sequence_mean, sequence_sum


@dataclass(frozen=True, slots=True)
class Correction:
    """How importance weights proximal / behaviour are bounded to [floor, cap]."""

    mode: CorrectionMode
    cap: float
    floor: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionInputs:
    """What a custom correction receives: the P predicted tokens of one pack, without gradients.

    `proximal_P` are the learner's logprobs at the start of the step, `behaviour_P` the sampler's;
    `segments_P` numbers the sequences from 0; `cap` and `floor` are `tis_cap` and `tis_floor`.
    """

    proximal_P: Tensor
    behaviour_P: Tensor
    segments_P: Tensor
    cap: float
    floor: float


def importance_weights(
    proximal_P: Tensor, behaviour_P: Tensor, segments_P: Tensor, rule: Correction
) -> tuple[Tensor, Tensor]:
    """Return the bounded weights proximal / behaviour, and which tokens were outside the bounds.

    Weights have no gradient. They are per token, or the product over the sequence. `truncate` moves
    a weight to the nearer bound: TIS (Yao et al., "Your efficient RL framework secretly brings you
    off-policy RL training"). `mask` sets a weight outside the bounds to zero: IcePop per token
    (arXiv 2510.18855), MIS per sequence (Liu et al., "When speed kills stability").
    """
    log_weight_P = (proximal_P - behaviour_P).detach()
    if rule.mode.startswith("sequence"):
        log_weight_P = sequence_sum(log_weight_P, segments_P)
    weight_P = log_weight_P.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    outside_P = (weight_P < rule.floor) | (weight_P > rule.cap)
    if rule.mode.endswith("mask"):
        return weight_P.masked_fill(outside_P, 0.0), outside_P
    return weight_P.clamp(rule.floor, rule.cap), outside_P


def sequence_mask(dlogp_P: Tensor, segments_P: Tensor, limit: float) -> Tensor:
    """Return 1.0 for tokens of sequences whose mean |dlogp| is at most `limit`, else 0.0."""
    mean_P = sequence_mean(dlogp_P.abs(), segments_P)
    return (mean_P <= limit).to(dlogp_P.dtype).detach()


def off_policy_mask(
    drift_P: Tensor, advantages_P: Tensor, segments_P: Tensor, limit: float
) -> Tensor:
    """Return 0.0 for tokens with a negative advantage in sequences whose mean `drift_P` (behaviour
    minus current logprob) exceeds `limit`; else 1.0 (DeepSeek-V3.2, arXiv 2512.02556).
    """
    far_P = sequence_mean(drift_P, segments_P) > limit
    return (~(far_P & (advantages_P < 0))).to(drift_P.dtype).detach()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """Learner compared with sampler: `kl` in nats, the rest absolute differences of logprobs."""

    kl: float
    mean: float
    p99: float
    max: float


def mismatch_kl(learner_N: NDArray[np.float32], behaviour_N: NDArray[np.float32]) -> float:
    """Return the k3 estimate of KL(sampler || learner) in nats per token; NaN without any token."""
    if not len(learner_N):
        return math.nan
    difference_N = learner_N.astype(np.float64) - behaviour_N.astype(np.float64)
    k3_N = np.expm1(np.clip(difference_N, -MAX_LOG_RATIO, MAX_LOG_RATIO)) - difference_N
    return float(k3_N.mean())


def mismatch(learner_N: NDArray[np.float32], behaviour_N: NDArray[np.float32]) -> Mismatch:
    """Compare logprobs of sampled tokens; `kl` is `mismatch_kl`.

    Without any token everything is NaN.
    """
    if not len(learner_N):
        return Mismatch(kl=math.nan, mean=math.nan, p99=math.nan, max=math.nan)
    size_N = np.abs(learner_N.astype(np.float64) - behaviour_N.astype(np.float64))
    return Mismatch(
        kl=mismatch_kl(learner_N, behaviour_N),
        mean=float(size_N.mean()),
        p99=float(np.quantile(size_N, 0.99)),
        max=float(size_N.max()),
    )
