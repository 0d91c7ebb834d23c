"""Losses and corrections that a recipe names as `module:function`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from envs.errors import ConfigError
from learner.config import LearnerConfig, is_function_path
from learner.objective.corrections import CorrectionInputs
from learner.objective.custom import CustomFunctions, load_custom_functions
from learner.objective.losses import LossInputs
from learner.objective.objective import Prediction, Targets, pack_loss
from learner.packed.packing import Pack

HERE = __name__


def plain(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    clipped_P = inputs.log_ratio_P.detach().abs() > inputs.clip.high
    return -inputs.advantages_P * inputs.logprobs_P, clipped_P


def halved(inputs: CorrectionInputs) -> tuple[Tensor, Tensor]:
    ratio_P = (inputs.proximal_P - inputs.behaviour_P).exp()
    return ratio_P / 2, ratio_P > inputs.cap


def of_two(inputs: LossInputs, more: int) -> tuple[Tensor, Tensor]:
    del more
    return plain(inputs)


def alone(inputs: LossInputs) -> Tensor:
    return plain(inputs)[0]


def summed(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    return plain(inputs)[0].sum(), plain(inputs)[1]


def counted(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    return plain(inputs)[0], plain(inputs)[1].float()


def without_gradient(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    loss_P, clipped_P = plain(inputs)
    return loss_P.detach(), clipped_P


def failing(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    return getattr(inputs, "phases_P"), plain(inputs)[1]  # noqa: B009 - pyright would find it


NO_FUNCTION = 3


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nothing", "importable function, found .*nothing"),
        ("NO_FUNCTION", "expected a function, found int"),
        ("of_two", r"missing a required argument: 'more' in the signature \(inputs"),
        ("alone", "a result of type Tensor"),
        ("summed", r"tensor 0 must be torch.float32 of shape \(3,\).*found .* of shape \(\)"),
        ("counted", "tensor 1 must be torch.bool .* found torch.float32"),
        ("without_gradient", "a loss with a gradient"),
        ("failing", "AttributeError.*phases_P"),
    ],
)
def test_a_wrong_function_is_refused_at_the_start_with_the_reason(
    name: str, complaint: str
) -> None:
    config = LearnerConfig(loss=f"{HERE}:{name}")
    with pytest.raises(ConfigError, match=complaint) as refused:
        load_custom_functions(config)
    assert f"learner.loss = '{HERE}:{name}'" in str(refused.value)


def test_a_correction_is_tried_like_a_loss() -> None:
    named = {"ratio_reference": "proximal", "tis_mode": f"{HERE}:halved"}
    assert load_custom_functions(LearnerConfig.model_validate(named)).correction is halved
    config = LearnerConfig.model_validate(named | {"tis_mode": f"{HERE}:alone"})
    with pytest.raises(ConfigError, match=r"learner\.tis_mode"):
        load_custom_functions(config)


def test_built_in_names_load_nothing() -> None:
    assert load_custom_functions(LearnerConfig(loss="cispo")) == CustomFunctions()


@pytest.mark.parametrize("text", ["ppo", "module:", ":loss", "a b:loss", "m:f:g", "m.py:f()"])
def test_a_name_that_is_neither_built_in_nor_a_function_is_refused(text: str) -> None:
    assert not is_function_path(text)
    with pytest.raises(ValidationError, match=r"'token', 'gspo'.*'module:function'"):
        LearnerConfig(loss=text)


def test_a_custom_loss_takes_the_clip_and_refuses_what_it_does_not_get() -> None:
    LearnerConfig(loss=f"{HERE}:plain", clip_low=0.1, dual_clip=3.0)
    with pytest.raises(ValidationError, match="sapo_tau_positive"):
        LearnerConfig(loss=f"{HERE}:plain", sapo_tau_positive=2.0)


def loss_of(options: dict[str, Any], custom: CustomFunctions) -> tuple[float, int, int]:
    """The loss of two episodes, of two tokens and of one, with weights 1, 2 and 3."""
    nothing = torch.empty(0, dtype=torch.int64)
    pack = Pack(
        token_ids_U=nothing,
        positions_U=nothing,
        paths_T=nothing,
        lengths_S=(),
        owned_S=(),
        predict_Q=nothing,
        targets_Q=nothing,
        temperatures_Q=nothing,
        scores_P=nothing,
        segments_P=torch.tensor([0, 0, 1]),
        sources_P=np.arange(3),
    )
    logprobs_P = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    targets = Targets(
        advantages_N=np.array([1.0, 1.0, -1.0], np.float32),
        weights_N=np.array([1.0, 2.0, 3.0], np.float32),
        behaviour_N=np.array([-1.0, -2.5, -3.0], np.float32),
        proximal_N=None,
    )
    config = LearnerConfig.model_validate(options)
    found = pack_loss(pack, Prediction(logprobs_P, torch.zeros(3)), targets, config, custom)
    return float(found.loss.detach()), found.clipped, found.corrected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # sum of weight * -advantage * logprob = 1 + 4 - 9; the second ratio, e^0.5, is clipped
        ({"loss": f"{HERE}:plain"}, (-4.0, 1, 0)),
        # each weight is half of proximal / behaviour: 1/2, e^0.5 / 2, 1/2
        (
            {
                "loss": f"{HERE}:plain",
                "ratio_reference": "proximal",
                "tis_mode": f"{HERE}:halved",
                "tis_cap": 1.5,
            },
            (0.5 * 1 + 0.5 * float(np.exp(0.5)) * 4 - 0.5 * 9, 0, 1),
        ),
    ],
)
def test_the_objective_calls_the_functions(
    options: dict[str, Any], expected: tuple[float, int, int]
) -> None:
    custom = load_custom_functions(LearnerConfig.model_validate(options))
    assert loss_of(options, custom) == pytest.approx(expected, rel=1e-6)


def test_a_custom_loss_without_its_function_is_an_error() -> None:
    with pytest.raises(ConfigError, match="load_custom_functions"):
        loss_of({"loss": f"{HERE}:plain"}, CustomFunctions())


def test_functions_of_this_module_have_the_documented_types() -> None:
    function: Callable[[LossInputs], tuple[Tensor, Tensor]] = plain
    assert load_custom_functions(LearnerConfig(loss=f"{HERE}:plain")).loss is function
