"""Use of PEFT: put adapters into a model, and describe them in PEFT's configuration file."""

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from torch import nn

from envs.errors import ConfigError
from learner.backends.lora import ADAPTER, is_factor
from rollout.config import LoraConfig


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Freeze `model` and put adapters on its target layers; the second factor starts at zero.

    Every rank samples the same factors. Raises ConfigError where no layer has a target's name.
    """
    dtype = next(model.parameters()).dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            inject_adapter_in_model(peft_config(config), model, ADAPTER)
        except ValueError as error:
            raise ConfigError(
                f"expected model.lora.target_modules to name layers of the model, found "
                f"{', '.join(config.target_modules)}: {str(error).splitlines()[0]}"
            ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_factor(name))
        parameter.data = parameter.data.to(dtype)


def peft_config(config: LoraConfig, base: str = "") -> PeftConfig:
    """Return PEFT's configuration; `base` is the path of the model that the adapters are for."""
    return PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] - PEFT divides it
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
