"""Models for images and text, served as the text model that they contain.

vLLM's classes for images need packages that are no use here (torchvision, processors), and memory
for parts that text never passes through.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm.model_executor.models import ModelRegistry

from rollout.weights.model_folder import read_architecture

_NESTED = re.compile(r"(?:model\.)?language_model\.(?:model\.)?(?P<rest>.+)")
_HEAD = "lm_head."


_WIDTHS = ("block_dim", "conv_dim")
"""Keys that vLLM's LFM2 reads, and transformers does not write: both are the hidden size."""


def text_model(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of the text model in `config`, for vLLM's `hf_overrides`.

    It is `config` itself where there is no `text_config`, or vLLM has no class for the text alone;
    keys that vLLM expects and transformers leaves out are added.
    """
    if config.model_type.startswith("lfm2"):
        for key in _WIDTHS:
            if not hasattr(config, key):
                setattr(config, key, config.hidden_size)
    text: Any = getattr(config, "text_config", None)
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(getattr(text, "model_type", ""), "")
    if name not in ModelRegistry.get_supported_archs():
        return config
    text.architectures = [name]
    text.tie_word_embeddings = config.tie_word_embeddings
    return text


def text_weights(
    named: Iterable[tuple[str, Tensor]], folder: str, served: PreTrainedConfig
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the checkpoint in `folder` as the model of `served` names them.

    Only where `text_model` has replaced the configuration are names changed and others left out.
    """
    nested = "text_config" in read_architecture(Path(folder))
    if not nested or hasattr(served, "text_config"):
        yield from named
        return
    for name, tensor in named:
        found = _NESTED.fullmatch(name)
        rest = found["rest"] if found else name
        if rest.startswith(_HEAD):
            yield rest, tensor
        elif found:
            yield f"model.{rest}", tensor
