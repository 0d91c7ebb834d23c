"""Policy-gradient losses per token, the KL penalty, and weights that aggregate token losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "constant"]
KlEstimator = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0
"""exp(20) is finite in float32 and far outside every clip range."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Ratios outside [1 - low, 1 + high] are clipped; `dual`, if not 0, bounds negative gains."""

    low: float
    high: float
    dual: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """What a custom loss receives: the P predicted tokens of one pack.

    `logprobs_P` and `log_ratio_P` have a gradient. `log_ratio_P` is the log of the new over the old
    policy's probability (the sampler's, or under `ratio_reference = "proximal"` the learner's at
    the start of the step), clamped to +-MAX_LOG_RATIO. `segments_P` numbers the sequences from 0.
    """

    logprobs_P: Tensor
    log_ratio_P: Tensor
    advantages_P: Tensor
    segments_P: Tensor
    clip: Clip


def log_ratio(logprobs_P: Tensor, old_logprobs_P: Tensor) -> Tensor:
    """Return the log of the importance ratio, bounded so that its exponential stays finite."""
    return (logprobs_P - old_logprobs_P).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def token_loss(log_ratio_P: Tensor, advantages_P: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """Return PPO's clipped loss per token and which tokens were clipped (arXiv 1707.06347, eq. 7).

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
    return token_loss(sequence_mean(log_ratio_P, segments_P), advantages_P, clip)


def sequence_token_loss(
    log_ratio_P: Tensor, advantages_P: Tensor, segments_P: Tensor, clip: Clip
) -> tuple[Tensor, Tensor]:
    """Return GSPO-token's loss: GSPO's ratio and clip, but every token keeps its own advantage and
    gradient (arXiv 2507.18071, eq. 13 and 14).
    """
    mean_P = sequence_mean(log_ratio_P, segments_P).detach()
    return token_loss(mean_P + log_ratio_P - log_ratio_P.detach(), advantages_P, clip)


def cispo_loss(
    log_ratio_P: Tensor, logprobs_P: Tensor, advantages_P: Tensor, clip: Clip
) -> tuple[Tensor, Tensor]:
    """Return CISPO's loss (arXiv 2506.13585): the clipped ratio is a constant weight.

    No token loses its gradient; the second value marks where the weight was clipped.
    """
    ratio_P = log_ratio_P.detach().exp()
    weight_P = ratio_P.clamp(1 - clip.low, 1 + clip.high)
    return -weight_P * advantages_P * logprobs_P, weight_P != ratio_P


def sapo_loss(
    log_ratio_P: Tensor, advantages_P: Tensor, positive: float, negative: float
) -> tuple[Tensor, Tensor]:
    """Return SAPO's loss (arXiv 2511.20347): a sigmoid gate of the ratio instead of a clip.

    The gate is 4 / tau * sigmoid(tau * (ratio - 1)) with tau by the advantage's sign; its slope at
    ratio 1 is 1. Nothing is clipped.
    """
    tau_P = torch.where(advantages_P > 0, positive, negative)
    gate_P = torch.sigmoid(tau_P * (log_ratio_P.exp() - 1)) * 4 / tau_P
    return -gate_P * advantages_P, torch.zeros_like(advantages_P, dtype=torch.bool)


def reinforce_loss(logprobs_P: Tensor, advantages_P: Tensor) -> tuple[Tensor, Tensor]:
    """Return the plain policy gradient's loss, without a ratio (GPG, arXiv 2504.02546)."""
    return -advantages_P * logprobs_P, torch.zeros_like(advantages_P, dtype=torch.bool)


def sequence_sum(values_P: Tensor, segments_P: Tensor) -> Tensor:
    """Return for every token the sum of `values_P` over its sequence."""
    count = int(segments_P.max()) + 1 if segments_P.numel() else 0
    return values_P.new_zeros(count).index_add(0, segments_P, values_P)[segments_P]


def sequence_mean(values_P: Tensor, segments_P: Tensor) -> Tensor:
    """Return for every token the mean of `values_P` over its sequence."""
    return sequence_sum(values_P, segments_P) / sequence_sum(torch.ones_like(values_P), segments_P)


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
    `constant` with a length of 1 is the mean over episodes of plain sums.
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
