"""The reinforcement-learning objective of one pack, as the configuration composes it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.config import LearnerConfig
from learner.losses import (
    Clip,
    cispo_loss,
    kl_penalty,
    log_ratio,
    sequence_loss,
    sequence_mask,
    token_loss,
    truncated_importance_weights,
)
from learner.packing import Pack


@dataclass(frozen=True, slots=True)
class Targets:
    """Constants of the loss over the N tokens of a step.

    `weights_N` are aggregated: the loss is their sum over token losses, on all ranks together.
    `proximal_N` are the learner's logprobs at the start of the step; None for a single update.
    """

    advantages_N: NDArray[np.float32]
    weights_N: NDArray[np.float32]
    behaviour_N: NDArray[np.float32]
    proximal_N: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class PackLoss:
    """`loss` is differentiable; the counts are tokens, `kl` a weighted sum in nats."""

    loss: Tensor
    clipped: int
    masked: int
    kl: float


def pack_loss(
    pack: Pack,
    logprobs_P: Tensor,
    reference_P: Tensor | None,
    targets: Targets,
    config: LearnerConfig,
) -> PackLoss:
    """Return the pack's share of the loss; without targets a 0 that still has a gradient."""
    if not len(pack.sources_P):
        return PackLoss(logprobs_P.sum(), 0, 0, 0.0)
    weights_P = _take(targets.weights_N, pack, logprobs_P)
    behaviour_P = _take(targets.behaviour_N, pack, logprobs_P)
    proximal_P = (
        logprobs_P.detach()
        if targets.proximal_N is None
        else _take(targets.proximal_N, pack, logprobs_P)
    )
    masked = 0
    if config.max_sequence_dlogp > 0:
        keep_P = sequence_mask(proximal_P - behaviour_P, pack.segments_P, config.max_sequence_dlogp)
        masked = int((keep_P == 0).sum())
        weights_P = weights_P * keep_P
    loss_P, cut_P = _policy_loss(pack, logprobs_P, (behaviour_P, proximal_P), targets, config)
    loss = (weights_P * loss_P).sum()
    kl = 0.0
    if reference_P is not None:
        penalty = (weights_P * kl_penalty(logprobs_P, reference_P, config.kl_estimator)).sum()
        loss = loss + config.kl_coef * penalty
        kl = float(penalty.detach())
    return PackLoss(loss, int((cut_P & (weights_P > 0)).sum()), masked, kl)


def _policy_loss(
    pack: Pack,
    logprobs_P: Tensor,
    old: tuple[Tensor, Tensor],
    targets: Targets,
    config: LearnerConfig,
) -> tuple[Tensor, Tensor]:
    behaviour_P, proximal_P = old
    advantages_P = _take(targets.advantages_N, pack, logprobs_P)
    clip = Clip(config.clip_low, config.clip_high, config.dual_clip)
    proximal = config.ratio_reference == "proximal"
    ratio_P = log_ratio(logprobs_P, proximal_P if proximal else behaviour_P)
    if config.loss == "gspo":
        loss_P, cut_P = sequence_loss(ratio_P, advantages_P, pack.segments_P, clip)
    elif config.loss == "cispo":
        loss_P, cut_P = cispo_loss(ratio_P, logprobs_P, advantages_P, clip)
    else:
        loss_P, cut_P = token_loss(ratio_P, advantages_P, clip)
    if proximal:
        loss_P = loss_P * truncated_importance_weights(proximal_P, behaviour_P, config.tis_cap)
    return loss_P, cut_P


def _take(values_N: NDArray[np.float32], pack: Pack, like: Tensor) -> Tensor:
    return torch.from_numpy(values_N[pack.sources_P]).to(like.device)
