"""Low-rank adapters on a policy (arXiv 2106.09685): the only weights trained and pushed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rollout.config import LoraConfig
from rollout.weights.layout import ADAPTER_PREFIX

PEFT = "learner.backends.peft_adapters"
"""The module that imports PEFT; the import takes seconds, so only where there are adapters."""

ADAPTER = "default"
"""PEFT's name for the one adapter."""

_FACTORS = (f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight")
_BASE = ".base_layer."


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let `model` compute with its frozen weights only.

    The factors are multiplied by 0 and not skipped, because ZeRO-3 expects the same layers in the
    same order in every pass.
    """
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
    scales = [layer.scaling[ADAPTER] for layer in layers]
    for layer in layers:
        layer.scaling[ADAPTER] = 0.0
    try:
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scaling[ADAPTER] = scale


def is_factor(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's factor."""
    return name.endswith(_FACTORS)


def saved_name(name: str) -> str:
    """Return the name of a factor in PEFT's files and in a push."""
    return f"{ADAPTER_PREFIX}{name.replace(f'.{ADAPTER}.', '.')}"


@torch.no_grad()
def merged(named: list[tuple[str, Tensor]], config: LoraConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights W + alpha / rank B A of `named` under Hugging Face names, without factors.

    The product is added in float32 and rounded once.
    """
    tensors = dict(named)
    for name, tensor in named:
        if is_factor(name):
            continue
        stem, base, _ = name.rpartition(_BASE + "weight")
        if not base:
            yield name.replace(_BASE, "."), tensor
            continue
        down, up = (tensors[stem + factor].float() for factor in _FACTORS)
        scale = config.alpha / config.rank
        yield f"{stem}.weight", (tensor.float() + scale * (up @ down)).to(tensor.dtype)
