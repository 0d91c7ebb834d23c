"""Export to a Hugging Face folder: safetensors, configuration and the tokenizer's files."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from pkgutil import resolve_name

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from envs.errors import LearnerError
from learner.backends.backend import Backend
from learner.backends.lora import PEFT
from learner.pretrained.folder import folder_weights
from rollout.chat.loading import carried_template
from rollout.chat.shipped import CHAT_TEMPLATE_FILE
from rollout.config import ModelConfig
from rollout.weights.layout import tensor_shapes

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
ADAPTER_FOLDER = "adapter"
"""Inside an exported folder: the adapters, which PEFT loads onto the run's initial model."""

_OWN = ("config.json", "generation_config.json")


def export_model(backend: Backend, source: Path, target: Path, model: ModelConfig) -> None:
    """Write the current weights to `target`, with the tokenizer files of `source`; collective.

    If `model` names a chat template or options of one, `target` carries them in its own. With LoRA
    the weights are merged, and `target` also holds the adapters in ADAPTER_FOLDER. The complete
    folder appears by a rename. Raises LearnerError where `target` exists.
    """
    lora = model.lora
    weights = _copied(backend, backend.named_weights())
    adapters = _copied(backend, backend.pushed_weights()) if lora.rank else {}
    exists = backend.gather(target.exists())[0]
    if exists:
        raise LearnerError(f"expected to export to a new folder, found that {target} exists")
    if backend.rank == 0:
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_weights(weights, source, partial)
        _copy_tokenizer(source, partial)
        if (text := carried_template(source, model)) is not None:
            (partial / CHAT_TEMPLATE_FILE).write_text(text, encoding="utf-8")
        if lora.rank:
            folder = partial / ADAPTER_FOLDER
            folder.mkdir()
            save_file(adapters, folder / "adapter_model.safetensors", {"format": "pt"})
            describe = resolve_name(f"{PEFT}:peft_config")
            describe(lora, str(source)).save_pretrained(str(folder))
        partial.rename(target)
    backend.gather(None)


def _copied(backend: Backend, named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return all tensors in host memory on rank 0, nothing on other ranks; collective."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in named if backend.rank == 0}


def _write_weights(weights: dict[str, Tensor], source: Path, folder: Path) -> None:
    """Write weights under the checkpoint's names, with its tensors that were not trained."""
    dtype = next(iter(weights.values())).dtype
    carried = folder_weights(source, tensor_shapes(source).keys() - weights.keys())
    config = AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=dtype)
    named = weights | dict(carried)
    skeleton.save_pretrained(folder, state_dict=named, save_original_format=False)
    if type(skeleton.config) is not type(config):  # the text part of a model for images and text
        config.dtype = str(dtype).removeprefix("torch.")
        config.save_pretrained(folder)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        if file.is_file() and file.name not in _OWN and not file.name.endswith(_WEIGHTS):
            shutil.copy2(file, folder / file.name)
    generation = source / "generation_config.json"
    if generation.is_file():
        shutil.copy2(generation, folder / generation.name)
