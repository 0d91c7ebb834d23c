"""Losses and corrections of the user: functions named in the recipe as `module:function`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor

from envs.errors import ConfigError
from learner.config import LearnerConfig, is_function_path
from learner.objective.corrections import CorrectionInputs
from learner.objective.losses import Clip, LossInputs

LossFunction = Callable[[LossInputs], tuple[Tensor, Tensor]]
"""Returns the loss of each token, and which tokens were clipped (bool), both of shape (P,)."""
CorrectionFunction = Callable[[CorrectionInputs], tuple[Tensor, Tensor]]
"""Returns the constant weight of each token, and which tokens it bounded (bool), both (P,)."""

_CALL_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class CustomFunctions:
    """The functions that the recipe names; None where it chooses a built-in one."""

    loss: LossFunction | None = None
    correction: CorrectionFunction | None = None


def load_custom_functions(config: LearnerConfig) -> CustomFunctions:
    """Import and try the functions that `config` names; every rank does so once, at its start.

    Raises ConfigError for a function that cannot be imported, does not take one argument, or
    returns something else than two tensors (P,).
    """
    loss = correction = None
    if is_function_path(config.loss):
        loss = _imported("learner.loss", config.loss)
        inputs = _example_of_loss(config)
        loss_P = _tried("learner.loss", config.loss, loss, inputs)
        if not loss_P.requires_grad:
            raise ConfigError(
                f"learner.loss = {config.loss!r}: expected a loss with a gradient, found one "
                "without: it must depend on logprobs_P or log_ratio_P"
            )
    if is_function_path(config.tis_mode):
        correction = _imported("learner.tis_mode", config.tis_mode)
        _tried("learner.tis_mode", config.tis_mode, correction, _example_of_correction(config))
    return CustomFunctions(loss, correction)


def _imported(key: str, path: str) -> Callable[[Any], Any]:
    try:
        function = resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{key} = {path!r}: expected an importable function, found {error}: start trialrun in "
            "the folder that holds the module, or install its package on every node"
        ) from error
    if not callable(function):
        raise ConfigError(f"{key} = {path!r}: expected a function, found {type(function).__name__}")
    return function


def _tried(key: str, path: str, function: Callable[[Any], Any], inputs: object) -> Tensor:
    """Call `function` on an example of three tokens and return its first tensor."""
    expected = f"{key} = {path!r}: expected function({type(inputs).__name__}) -> (Tensor, Tensor)"
    try:
        inspect.signature(function).bind(inputs)
    except TypeError as error:
        found = f"{error} in the signature {inspect.signature(function)}"
        raise ConfigError(f"{expected}, found {found}") from None
    try:
        result = function(inputs)
    except _CALL_ERRORS as error:
        raise ConfigError(f"{expected}, found {error!r} on an example of 3 tokens") from error
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ConfigError(f"{expected}, found a result of type {type(result).__name__}")
    for index, (value, kind) in enumerate(zip(result, (torch.float32, torch.bool), strict=True)):
        if not (isinstance(value, Tensor) and value.shape == (3,) and value.dtype == kind):
            found = (
                f"{value.dtype} of shape {tuple(value.shape)}"
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise ConfigError(
                f"{expected}: tensor {index} must be {kind} of shape (3,) for 3 tokens, "
                f"found {found}"
            )
    return result[0]


def _example_of_loss(config: LearnerConfig) -> LossInputs:
    """Return two sequences, of two tokens and of one, with advantages of both signs."""
    logprobs_P = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    return LossInputs(
        logprobs_P=logprobs_P,
        log_ratio_P=logprobs_P - torch.tensor([-1.1, -1.9, -0.5]),
        advantages_P=torch.tensor([1.0, 1.0, -1.0]),
        segments_P=torch.tensor([0, 0, 1]),
        clip=Clip(config.clip_low, config.clip_high, config.dual_clip),
    )


def _example_of_correction(config: LearnerConfig) -> CorrectionInputs:
    return CorrectionInputs(
        proximal_P=torch.tensor([-1.0, -2.0, -0.5]),
        behaviour_P=torch.tensor([-1.1, -1.9, -3.5]),
        segments_P=torch.tensor([0, 0, 1]),
        cap=config.tis_cap,
        floor=config.tis_floor,
    )
