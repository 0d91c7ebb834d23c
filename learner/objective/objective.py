"""The reinforcement-learning objective of one pack, as the configuration composes it."""

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.errors import ConfigError
from learner.config import CorrectionMode, LearnerConfig
from learner.objective.corrections import (
    Correction,
    CorrectionInputs,
    importance_weights,
    off_policy_mask,
    sequence_mask,
)
from learner.objective.custom import CustomFunctions, LossFunction
from learner.objective.losses import (
    Clip,
    LossInputs,
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
    """The models' logprobs and entropies of the predicted tokens of a pack.

    `entropies_P` have a gradient only with an entropy bonus; `reference_P` exists only with a KL
    penalty.
    """

    logprobs_P: Tensor
    entropies_P: Tensor
    reference_P: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PackLoss:
    """`loss` is differentiable; the counts are tokens.

    `clipped` tokens were clipped by the loss, `masked` tokens were excluded as too far off-policy,
    `corrected` tokens had an importance weight outside its bounds. `kl` is the plain sum of
    `kl_estimator` over the tokens, in nats: without weights, masks and ratios; None without a
    reference.
    """

    loss: Tensor
    clipped: int = 0
    masked: int = 0
    corrected: int = 0
    kl: float | None = None

    def detached(self) -> "PackLoss":
        """Return the same without the autograd graph."""
        return replace(self, loss=self.loss.detach())


@dataclass(frozen=True, slots=True)
class _Constants:
    """Tensors without a gradient over the P tokens of a pack."""

    advantages_P: Tensor
    weights_P: Tensor
    behaviour_P: Tensor
    proximal_P: Tensor


_BUILT_IN = CustomFunctions()


def pack_loss(
    pack: Pack,
    prediction: Prediction,
    targets: Targets,
    config: LearnerConfig,
    custom: CustomFunctions = _BUILT_IN,
) -> PackLoss:
    """Return the pack's share of the loss; for a pack without targets, a 0 with a gradient.

    `custom` holds the functions that `config.loss` and `config.tis_mode` name, if they name any.
    """
    logprobs_P = prediction.logprobs_P
    if not len(pack.sources_P):
        return PackLoss(logprobs_P.sum())
    given = _constants(pack, logprobs_P, targets)
    keep_P = _mask(pack, logprobs_P, given, config)
    weights_P = given.weights_P * keep_P
    ratio_P = log_ratio(logprobs_P, _denominator(given, config))
    inputs = LossInputs(
        logprobs_P=logprobs_P,
        log_ratio_P=ratio_P,
        advantages_P=given.advantages_P,
        segments_P=pack.segments_P,
        clip=Clip(config.clip_low, config.clip_high, config.dual_clip),
    )
    loss_P, cut_P = (custom.loss or _built_in_loss(config))(inputs)
    corrected = 0
    if config.ratio_reference == "proximal":
        importance_P, outside_P = _importance(pack, given, config, custom)
        loss_P = loss_P * importance_P
        corrected = int(outside_P.sum())
    loss = (weights_P * loss_P).sum()
    kl = None
    if prediction.reference_P is not None:
        penalty_P = kl_penalty(logprobs_P, prediction.reference_P, config.kl_estimator)
        kl = float(penalty_P.detach().sum())
        loss = loss + config.kl_coef * _penalty(penalty_P, logprobs_P, given, config)
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


def _penalty(
    penalty_P: Tensor, logprobs_P: Tensor, given: _Constants, config: LearnerConfig
) -> Tensor:
    """Return the weighted sum of the KL penalty over all tokens, whatever the off-policy masks.

    The masks are for the policy's gain: tokens that have drifted furthest are the ones to be held.
    """
    if config.kl_unbiased:
        # The tokens are the sampler's, so its ratio is the right one under `proximal` too, and
        # without the bounds of the correction, which would bring the bias back.
        penalty_P = penalty_P * log_ratio(logprobs_P, given.behaviour_P).exp()
    return (given.weights_P * penalty_P).sum()


def _mask(pack: Pack, logprobs_P: Tensor, given: _Constants, config: LearnerConfig) -> Tensor:
    """Return 0.0 for tokens that are too far from their sampling policy, else 1.0."""
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


def _importance(
    pack: Pack, given: _Constants, config: LearnerConfig, custom: CustomFunctions
) -> tuple[Tensor, Tensor]:
    if custom.correction is not None:
        weight_P, outside_P = custom.correction(
            CorrectionInputs(
                proximal_P=given.proximal_P,
                behaviour_P=given.behaviour_P,
                segments_P=pack.segments_P,
                cap=config.tis_cap,
                floor=config.tis_floor,
            )
        )
        return weight_P.detach(), outside_P
    mode = cast(CorrectionMode, config.tis_mode)
    rule = Correction(mode, config.tis_cap, config.tis_floor)
    return importance_weights(given.proximal_P, given.behaviour_P, pack.segments_P, rule)


def _built_in_loss(config: LearnerConfig) -> LossFunction:
    match config.loss:
        case "token":
            return lambda at: token_loss(at.log_ratio_P, at.advantages_P, at.clip)
        case "gspo":
            return lambda at: sequence_loss(at.log_ratio_P, at.advantages_P, at.segments_P, at.clip)
        case "gspo_token":
            return lambda at: sequence_token_loss(
                at.log_ratio_P, at.advantages_P, at.segments_P, at.clip
            )
        case "cispo":
            return lambda at: cispo_loss(at.log_ratio_P, at.logprobs_P, at.advantages_P, at.clip)
        case "sapo":
            taus = config.sapo_tau_positive, config.sapo_tau_negative
            return lambda at: sapo_loss(at.log_ratio_P, at.advantages_P, *taus)
        case "reinforce":
            return lambda at: reinforce_loss(at.logprobs_P, at.advantages_P)
        case other:
            raise ConfigError(
                f"expected the function of learner.loss = {other!r} to be loaded, found none: "
                "pass load_custom_functions(config)"
            )
