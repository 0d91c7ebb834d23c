"""Export to a Hugging Face folder: safetensors, configuration and the tokenizer's files."""

import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from envs.errors import LearnerError
from learner.backend import Backend

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
_OWN = ("config.json", "generation_config.json")


def export_model(backend: Backend, source: Path, target: Path) -> None:
    """Write the current weights to `target`, with the tokenizer files of `source`; collective.

    The folder appears whole, by a rename. Raises LearnerError where `target` exists already.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in backend.named_weights():
        if backend.rank == 0:
            weights[name] = tensor.to("cpu", copy=True)
    exists = backend.gather(target.exists())[0]
    if exists:
        raise LearnerError(f"expected to export to a new folder, found {target} there already")
    if backend.rank == 0:
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_weights(weights, source, partial)
        _copy_tokenizer(source, partial)
        partial.rename(target)
    backend.gather(None)


def _write_weights(weights: dict[str, Tensor], source: Path, folder: Path) -> None:
    dtype = next(iter(weights.values())).dtype
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=dtype)
    skeleton.save_pretrained(folder, state_dict=weights)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        if file.is_file() and file.name not in _OWN and not file.name.endswith(_WEIGHTS):
            shutil.copy2(file, folder / file.name)
    generation = source / "generation_config.json"
    if generation.is_file():
        shutil.copy2(generation, folder / generation.name)
