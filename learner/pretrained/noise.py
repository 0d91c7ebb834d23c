"""Noise of a model's own during training, dropout for example: switched off where it is loaded."""

import re
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

_NOISE = re.compile(r"drop|jitter|stochastic_depth")
"""In the names of keys of config.json that give a share or a size of noise."""


def without_noise(config: PreTrainedConfig) -> PreTrainedConfig:
    """Set every dropout, layer drop and jitter of `config`, nested ones too, to 0; return it."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            without_noise(value)
        elif _NOISE.search(name) and isinstance(value, float) and value > 0:
            setattr(config, name, 0.0)
    return config


def silence(model: nn.Module) -> None:
    """Set every dropout layer of `model` to 0, also one that its config.json does not name."""
    for module in model.modules():
        layer: Any = module  # the layers have no common public class
        if type(module).__name__.endswith("Dropout") and isinstance(getattr(layer, "p", 0), float):
            layer.p = 0.0
