"""What a model folder must be like to be trained: checked without its weights, before a run starts.

The model is built on the meta device, so this takes a second and no memory for a model of any size.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from envs.errors import ConfigError
from learner.pretrained.folder import folder_weights
from learner.pretrained.names import checkpoint_names, mark_conversions, parameter_shapes
from rollout.config import ModelConfig
from rollout.weights.layout import HEAD, adapter_layout, tensor_shapes
from rollout.weights.model_folder import mixing_layers, read_architecture

BROKEN_CONFIG = (ValueError, KeyError, StrictDataclassError)
"""What transformers raises for a config.json that it does not know, or that contradicts itself."""
BROKEN_MODEL = (*BROKEN_CONFIG, ImportError, AttributeError, TypeError)
"""What transformers raises for a model that it cannot build as it is told to."""
_SCALED_LOGITS = (
    "final_logit_softcapping",
    "logits_scaling",
    "logit_scale",
    "logits_soft_cap",
    "attn_logit_softcapping",
    "lm_head_multiplier",
)
_MIXERS = re.compile(r"mamba|conv|deltanet|linearattention|recurrent|rwkv|retention|lightning|ssm")
"""In the lower-case name of a class of layers that mixes positions without attention."""
_OTHER_SENSES = r"(^|\.)(vision|visual|audio|multi_modal|mm_|embed_vision|embed_audio)"
"""In the names of tensors for images and sound."""
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What the learner does with a model folder; see `check_trained`."""

    mixing: tuple[str, ...]
    """What mixes positions besides attention, so that episodes are not packed; empty otherwise."""
    carried: tuple[str, ...]
    """Tensors of the checkpoint that are not trained: pushed and exported as they are."""


def check_trained(folder: Path, model: ModelConfig) -> TrainedModel:
    """Raise ConfigError unless the learner can train the model of `folder` and push it.

    Refused are scaled logits, quantised weights, an architecture that transformers does not know,
    tensors whose names or shapes differ from the checkpoint, and adapters that the engine would
    not find. Raises MissingError, DataFileError for a folder without readable weights.
    """
    skeleton = build_skeleton(folder)
    check_parts(skeleton, folder)
    shapes = tensor_shapes(folder)
    mark_conversions(skeleton, shapes)
    _check_tied_head(folder, skeleton)
    carried = _carried(folder, skeleton, shapes)
    if model.lora.rank:
        _check_adapters(folder, skeleton, model)
    return TrainedModel(tuple(_mixing(skeleton, folder)), carried)


def check_parts(model: PreTrainedModel, folder: Path) -> None:
    """Raise ConfigError unless `model` is a text model with a head on top, each to be had apart."""
    if model.get_decoder() is model or model.get_output_embeddings() is None:
        raise ConfigError(
            f"expected a text model and a head on top of it in {folder}, found "
            f"{type(model).__name__} without such parts: choose another model"
        )


def mixes(folder: Path) -> list[str]:
    """Return what mixes positions besides attention in the model of `folder`; see TrainedModel."""
    return mixing_layers(read_architecture(folder)) or _mixing(build_skeleton(folder), folder)


def build_skeleton(folder: Path) -> PreTrainedModel:
    """Return the model of `folder` on the meta device. Raises ConfigError as `check_logits` does,
    and for an architecture that transformers does not build.
    """
    check_logits(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    except BROKEN_MODEL as error:
        raise ConfigError(
            f"expected a causal language model that transformers can build in {folder}, found: "
            f"{one_line(error)}: choose another model"
        ) from error


def check_logits(folder: Path) -> None:
    """Raise ConfigError where logits are not the head's output, or weights are quantised."""
    architecture = read_architecture(folder)
    if architecture.get("quantization_config"):
        raise ConfigError(
            f"expected weights of 16 or 32 bits, found a quantization_config in {folder}: "
            "choose the version of the model that is not quantised"
        )
    try:
        config = AutoConfig.from_pretrained(folder).get_text_config()
    except BROKEN_CONFIG as error:
        raise ConfigError(
            f"expected a model_type that transformers knows, and values that agree, in the "
            f"config.json of {folder}, found: {one_line(error)}: repair it or choose another model"
        ) from error
    scaled = [name for name in _SCALED_LOGITS if getattr(config, name, None) not in (None, 1, 1.0)]
    if scaled:
        raise ConfigError(
            f"expected a model whose logits are its head's output, found {scaled[0]} in {folder}: "
            f"choose a model without it"
        )


def one_line(error: Exception) -> str:
    """Return what `error` says, without line breaks; its class too, where it is a lost name."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) else text


def _mixing(model: PreTrainedModel, folder: Path) -> list[str]:
    """Return the layers, by kind or class, that mix positions besides attention; sorted.

    Read from config.json and from the classes of the text model's modules. GPT-2's Conv1D is a
    linear layer by another name.
    """
    decoder: Any = model.get_decoder()
    classes = {
        type(module).__name__
        for module in decoder.modules()
        if isinstance(module, nn.Conv1d) or _MIXERS.search(type(module).__name__.lower())
        if not isinstance(module, Conv1D)
    }
    return mixing_layers(read_architecture(folder)) or sorted(classes)


def _carried(
    folder: Path, model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """Compare what the learner publishes with the checkpoint; return what only that has."""
    published = {
        name: tuple(tensor.shape)
        for name, tensor in checkpoint_names(model, parameter_shapes(model))
    }
    wrong = [
        f"{name} {list(shape)} instead of {list(shapes[name])}"
        for name, shape in published.items()
        if name in shapes and shape != shapes[name]
    ]
    if wrong:
        raise _names_differ(folder, "tensors of other shapes", wrong)
    beyond = sorted(published.keys() - shapes.keys())
    if beyond:
        raise _names_differ(folder, "tensors that the checkpoint has not", beyond)
    left = sorted(shapes.keys() - published.keys())
    stay = _stay(model)
    unknown = [name for name in left if not any(key.search(name) for key in stay)]
    if unknown:
        raise _names_differ(folder, "no use of some tensors of the checkpoint", unknown)
    return tuple(left)


def _check_tied_head(folder: Path, model: PreTrainedModel) -> None:
    """Refuse a head of its own in a checkpoint whose config.json says that it is the embedding.

    transformers and vLLM both look at the values and then believe the checkpoint.
    """
    if not model.config.tie_word_embeddings:
        return
    embedding: Any = model.get_input_embeddings()
    named = [(name, p) for name, p in model.named_parameters() if p is embedding.weight]
    names = {HEAD, *(name for name, _ in checkpoint_names(model, named))}
    found = [tensor for _, tensor in folder_weights(folder, names)]
    if len(found) > 1 and not torch.equal(*found):
        raise ConfigError(
            f"expected one weight for embedding and head in {folder} (tie_word_embeddings), found "
            f"another one in {HEAD}: set tie_word_embeddings to false in its config.json"
        )


def _names_differ(folder: Path, what: str, names: Iterable[str]) -> ConfigError:
    found = list(names)
    return ConfigError(
        f"expected the learner to train the tensors of the checkpoint in {folder}, found {what} "
        f"({len(found)}: {', '.join(found[:_SHOWN])}): load the model with transformers and save "
        "it again, or choose another one"
    )


def _stay(model: PreTrainedModel) -> list[re.Pattern[str]]:
    """Return patterns of tensors, no parameters of the learner, that stay as in the checkpoint.

    They are buffers, belong to images or sound, or are left out by transformers on purpose (heads
    that predict several tokens at once).
    """
    kept = set(model.state_dict())
    buffers = [(name, tensor) for name, tensor in model.named_buffers() if name in kept]
    names = [f"^{re.escape(name)}$" for name, _ in checkpoint_names(model, buffers)]
    ignored = model._keys_to_ignore_on_load_unexpected or ()
    return [re.compile(key) for key in (*names, *ignored, _OTHER_SENSES)]


def _check_adapters(folder: Path, model: PreTrainedModel, config: ModelConfig) -> None:
    targets = config.lora.target_modules
    found = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[-1] in targets
    }
    slots = adapter_layout(str(folder), config.dtype, config.lora).slots
    served = {
        slot.name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        for slot in slots
        if slot.name.endswith(".lora_A.weight")
    }
    differing = sorted(found ^ served)
    if differing:
        raise ConfigError(
            f"expected adapters (model.lora) on the same layers in the learner and in the engine, "
            f"found {len(differing)} others in {folder}, {differing[0]} for example: layers of "
            "experts or of a model for images get none; set model.lora.target_modules to "
            'attention\'s, ["q_proj", "k_proj", "v_proj", "o_proj"], or model.lora.rank = 0'
        )
