"""Policy-gradient losses per token, their aggregation, and the mismatch of two sets of logprobs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "constant"]
KlEstimator = Literal["k1", "k2", "k3"]

_MAX_LOG_RATIO = 20.0  # exp(20) is finite in float32 and far outside every clip range


@dataclass(frozen=True, slots=True)
class Clip:
    """Ratios outside [1 - low, 1 + high] are clipped; `dual`, if not 0, bounds negative gains."""

    low: float
    high: float
    dual: float = 0.0


def log_ratio(logprobs_P: Tensor, old_logprobs_P: Tensor) -> Tensor:
    """Return the log of the importance ratio, bounded so that its exponential stays finite."""
    return (logprobs_P - old_logprobs_P).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def token_loss(log_ratio_P: Tensor, advantages_P: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """Return PPO's clipped loss per token and which tokens were cut off (arXiv 1707.06347, eq. 7).

    Clip-higher: arXiv 2503.14476, eq. 10; dual clip: arXiv 1912.09729, eq. 5.
    """
    ratio_P = log_ratio_P.exp()
    clipped_ratio_P = ratio_P.clamp(1 - clip.low, 1 + clip.high)
    gain_P = torch.minimum(ratio_P * advantages_P, clipped_ratio_P * advantages_P)
    cut_P = clipped_ratio_P * advantages_P < ratio_P * advantages_P
    if clip.dual > 0:
        bound_P = clip.dual * advantages_P
        below_P = (advantages_P < 0) & (gain_P < bound_P)
        gain_P = torch.where(below_P, bound_P, gain_P)
        cut_P = cut_P | below_P
    return -gain_P, cut_P


def sequence_loss(
    log_ratio_P: Tensor, advantages_P: Tensor, segments_P: Tensor, clip: Clip
) -> tuple[Tensor, Tensor]:
    """Return GSPO's loss, the same for every token of a sequence (arXiv 2507.18071, eq. 5 and 7).

    Its ratio is the exponential of its mean log ratio; `segments_P` numbers sequences from 0.
    """
    count = int(segments_P.max()) + 1 if segments_P.numel() else 0
    total_S = log_ratio_P.new_zeros(count).index_add(0, segments_P, log_ratio_P)
    length_S = log_ratio_P.new_zeros(count).index_add(0, segments_P, torch.ones_like(log_ratio_P))
    mean_P = (total_S / length_S.clamp(min=1))[segments_P]
    return token_loss(mean_P, advantages_P, clip)


def cispo_loss(
    log_ratio_P: Tensor, logprobs_P: Tensor, advantages_P: Tensor, clip: Clip
) -> tuple[Tensor, Tensor]:
    """Return CISPO's loss (arXiv 2506.13585): the clipped ratio is a constant weight.

    No token loses its gradient; the second value says where the weight was clipped.
    """
    ratio_P = log_ratio_P.detach().exp()
    weight_P = ratio_P.clamp(1 - clip.low, 1 + clip.high)
    return -weight_P * advantages_P * logprobs_P, weight_P != ratio_P


def truncated_importance_weights(proximal_P: Tensor, behaviour_P: Tensor, cap: float) -> Tensor:
    """Return min(proximal / behaviour, cap) per token, from logprobs; constants of the loss."""
    return log_ratio(proximal_P, behaviour_P).exp().clamp(max=cap).detach()


def sequence_mask(dlogp_P: Tensor, segments_P: Tensor, limit: float) -> Tensor:
    """Return 1.0 for tokens of sequences whose mean |dlogp| is at most `limit`, else 0.0."""
    count = int(segments_P.max()) + 1 if segments_P.numel() else 0
    total_S = dlogp_P.new_zeros(count).index_add(0, segments_P, dlogp_P.abs())
    length_S = dlogp_P.new_zeros(count).index_add(0, segments_P, torch.ones_like(dlogp_P))
    return (total_S / length_S.clamp(min=1) <= limit).to(dlogp_P.dtype)[segments_P].detach()


def kl_penalty(logprobs_P: Tensor, reference_P: Tensor, estimator: KlEstimator) -> Tensor:
    """Estimate KL(policy || reference) per token (Schulman, "Approximating KL divergence")."""
    difference_P = logprobs_P - reference_P
    if estimator == "k1":
        return difference_P
    if estimator == "k2":
        return difference_P.square() / 2
    return log_ratio(reference_P, logprobs_P).exp() - 1 + difference_P


def aggregation_weights(
    token_weights: Sequence[NDArray[np.float32]], aggregation: Aggregation, constant_length: int
) -> list[NDArray[np.float32]]:
    """Return one weight per loss token so that the loss is the plain sum of weight * token loss.

    `token_weights` holds one array per episode of all ranks, so every rank divides by one number.
    """
    totals = [float(weights_T.sum()) for weights_T in token_weights]
    if aggregation == "token_mean":
        divisors = [sum(totals)] * len(totals)
    elif aggregation == "sequence_mean":
        divisors = [total * len(totals) for total in totals]
    else:
        divisors = [float(constant_length * len(totals))] * len(totals)
    return [
        (weights_T / (divisor or 1.0)).astype(np.float32)
        for weights_T, divisor in zip(token_weights, divisors, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Learner against sampler: `kl` in nats, the others absolute differences of logprobs."""

    kl: float
    mean: float
    p99: float
    max: float


def mismatch(learner_N: NDArray[np.float32], behaviour_N: NDArray[np.float32]) -> Mismatch:
    """Compare logprobs of sampled tokens; `kl` is the k3 estimate of KL(sampler || learner)."""
    if not len(learner_N):
        return Mismatch(0.0, 0.0, 0.0, 0.0)
    difference_N = learner_N.astype(np.float64) - behaviour_N.astype(np.float64)
    size_N = np.abs(difference_N)
    k3_N = np.expm1(np.clip(difference_N, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)) - difference_N
    return Mismatch(
        kl=float(k3_N.mean()),
        mean=float(size_N.mean()),
        p99=float(np.quantile(size_N, 0.99)),
        max=float(size_N.max()),
    )
