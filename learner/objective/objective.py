"""The reinforcement-learning objective of one pack, as the configuration composes it."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.config import LearnerConfig
from learner.objective.corrections import (
    Correction,
    importance_weights,
    off_policy_mask,
    sequence_mask,
)
from learner.objective.losses import (
    Clip,
    cispo_loss,
    kl_penalty,
    log_ratio,
    reinforce_loss,
    sapo_loss,
    sequence_loss,
    sequence_token_loss,
    token_loss,
)
from learner.packed.packing import Pack


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
class Prediction:
    """What models said about the predicted tokens of a pack; `entropies_P` have a gradient only
    under an entropy bonus, `reference_P` exists only under a KL penalty."""

    logprobs_P: Tensor
    entropies_P: Tensor
    reference_P: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PackLoss:
    """`loss` is differentiable; the counts are tokens, `kl` a weighted sum in nats.

    `clipped` tokens met the clip, `masked` ones were left out as off-policy, `corrected` ones had
    an importance weight outside its bounds.
    """

    loss: Tensor
    clipped: int = 0
    masked: int = 0
    corrected: int = 0
    kl: float = 0.0

    def detached(self) -> "PackLoss":
        """Return the same without what a backward pass needs."""
        return replace(self, loss=self.loss.detach())


@dataclass(frozen=True, slots=True)
class _Constants:
    """What the loss takes as given, over the P tokens of a pack."""

    advantages_P: Tensor
    weights_P: Tensor
    behaviour_P: Tensor
    proximal_P: Tensor


def pack_loss(
    pack: Pack, prediction: Prediction, targets: Targets, config: LearnerConfig
) -> PackLoss:
    """Return the pack's share of the loss; without targets a 0 that still has a gradient."""
    logprobs_P = prediction.logprobs_P
    if not len(pack.sources_P):
        return PackLoss(logprobs_P.sum())
    given = _constants(pack, logprobs_P, targets)
    keep_P = _mask(pack, logprobs_P, given, config)
    weights_P = given.weights_P * keep_P
    ratio_P = log_ratio(logprobs_P, _denominator(given, config))
    loss_P, cut_P = _policy_loss(pack, logprobs_P, ratio_P, given.advantages_P, config)
    corrected = 0
    if config.ratio_reference == "proximal":
        rule = Correction(config.tis_mode, config.tis_cap, config.tis_floor)
        importance_P, outside_P = importance_weights(
            given.proximal_P, given.behaviour_P, pack.segments_P, rule
        )
        loss_P = loss_P * importance_P
        corrected = int(outside_P.sum())
    loss = (weights_P * loss_P).sum()
    kl = 0.0
    if prediction.reference_P is not None:
        penalty_P = kl_penalty(logprobs_P, prediction.reference_P, config.kl_estimator)
        if config.kl_unbiased:
            penalty_P = penalty_P * ratio_P.exp()
        penalty = (weights_P * penalty_P).sum()
        loss = loss + config.kl_coef * penalty
        kl = float(penalty.detach())
    if config.entropy_gradient:
        loss = loss - config.entropy_coef * (given.weights_P * prediction.entropies_P).sum()
    return PackLoss(
        loss=loss,
        clipped=int((cut_P & (weights_P > 0)).sum()),
        masked=int((keep_P == 0).sum()),
        corrected=corrected,
        kl=kl,
    )


def _constants(pack: Pack, logprobs_P: Tensor, targets: Targets) -> _Constants:
    def take(values_N: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(values_N[pack.sources_P]).to(logprobs_P.device)

    proximal_N = targets.proximal_N
    return _Constants(
        advantages_P=take(targets.advantages_N),
        weights_P=take(targets.weights_N),
        behaviour_P=take(targets.behaviour_N),
        proximal_P=logprobs_P.detach() if proximal_N is None else take(proximal_N),
    )


def _denominator(given: _Constants, config: LearnerConfig) -> Tensor:
    return given.proximal_P if config.ratio_reference == "proximal" else given.behaviour_P


def _mask(pack: Pack, logprobs_P: Tensor, given: _Constants, config: LearnerConfig) -> Tensor:
    """Return 0.0 for tokens that are left out as too far from their sampler, else 1.0."""
    keep_P = torch.ones_like(given.weights_P)
    if config.max_sequence_dlogp > 0:
        dlogp_P = given.proximal_P - given.behaviour_P
        keep_P = keep_P * sequence_mask(dlogp_P, pack.segments_P, config.max_sequence_dlogp)
    if config.max_negative_kl > 0:
        drift_P = given.behaviour_P - logprobs_P.detach()
        keep_P = keep_P * off_policy_mask(
            drift_P, given.advantages_P, pack.segments_P, config.max_negative_kl
        )
    return keep_P


def _policy_loss(
    pack: Pack, logprobs_P: Tensor, ratio_P: Tensor, advantages_P: Tensor, config: LearnerConfig
) -> tuple[Tensor, Tensor]:
    clip = Clip(config.clip_low, config.clip_high, config.dual_clip)
    match config.loss:
        case "token":
            return token_loss(ratio_P, advantages_P, clip)
        case "gspo":
            return sequence_loss(ratio_P, advantages_P, pack.segments_P, clip)
        case "gspo_token":
            return sequence_token_loss(ratio_P, advantages_P, pack.segments_P, clip)
        case "cispo":
            return cispo_loss(ratio_P, logprobs_P, advantages_P, clip)
        case "sapo":
            taus = config.sapo_tau_positive, config.sapo_tau_negative
            return sapo_loss(ratio_P, advantages_P, *taus)
        case "reinforce":
            return reinforce_loss(logprobs_P, advantages_P)
