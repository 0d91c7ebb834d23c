"""What the files of a Hugging Face folder say: its text model, and which files hold its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.errors import DataFileError, MissingError

INDEX = "model.safetensors.index.json"
"""Names the file of each tensor, where the weights are in several files."""
SINGLE = "model.safetensors"

ATTENTION = frozenset({"attention", "full_attention", "sliding_attention"})
"""Values of `layer_types` for layers in which attention alone mixes positions."""

_STATE_KEYS = (
    "attn_layer_period",
    "conv_L_cache",
    "hybrid_override_pattern",
    "layers_block_type",
    "linear_num_value_heads",
    "mamba_d_state",
    "mamba_num_heads",
    "ssm_state_size",
    "state_size",
)
"""Keys of config.json that only models with recurrent layers have."""


def read_architecture(folder: Path) -> dict[str, Any]:
    """Return the content of config.json. Raises MissingError, DataFileError."""
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise MissingError(f"expected a Hugging Face folder, found no {path}") from error
    except (ValueError, TypeError) as error:
        raise DataFileError(f"expected a JSON object in {path}, found {error}") from error


def text_section(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a config.json that describe the text model.

    Models for images and text have them in a nested `text_config`, which wins over the outer ones.
    """
    nested = architecture.get("text_config")
    return {**architecture, **nested} if isinstance(nested, Mapping) else dict(architecture)


def mixing_layers(architecture: Mapping[str, Any]) -> list[str]:
    """Return what in a config.json tells that more than attention mixes positions, sorted.

    These are kinds of layers (`conv`, `linear_attention`, ...), or keys that only models with
    recurrent layers have. A kind of attention that is not known counts too.
    """
    text = text_section(architecture)
    kinds = {str(kind) for kind in text.get("layer_types") or ()} - ATTENTION
    return sorted(kinds) or [key for key in _STATE_KEYS if text.get(key)]


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold the weights of `folder`, sorted.

    The index decides if there is one, else `model.safetensors` counts alone: other safetensors
    files, such as Mistral's `consolidated.safetensors`, are a second copy. Raises MissingError
    with the way to convert other formats, and where both are there; DataFileError for a broken
    index.
    """
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        raise MissingError(_advice(folder))
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataFileError(f"expected a weight_map in {index}, found {error!r}") from error
    if SINGLE not in names and (folder / SINGLE).is_file():
        raise MissingError(
            f"expected the weights once in {folder}, found {SINGLE} beside {INDEX}, which does not "
            "name it: transformers reads the one and vLLM the other; take one of them away"
        )
    lost = [name for name in names if not (folder / name).is_file()]
    if lost or not names:
        raise MissingError(
            f"expected the {len(names)} files that {index} names, found no {', '.join(lost[:3])}: "
            "copy the whole model folder"
        )
    return [folder / name for name in names]


def _advice(folder: Path) -> str:
    """Say which weights are there instead, and the command that converts them."""
    gguf = sorted(path.name for path in folder.glob("*.gguf"))
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    expected = f"expected {SINGLE} or {INDEX} in {folder}, found"
    if not gguf and not pickled:
        other = sorted(path.name for path in folder.glob("*.safetensors"))
        found = f"only {', '.join(other[:3])}" if other else "no safetensors files"
        return (
            f"{expected} {found}: copy the whole model folder, or save the model with transformers"
        )
    return f"{expected} {(gguf or pickled)[0]}: {_conversion(folder, gguf[0] if gguf else '')}"


def gguf_advice(file: Path) -> str:
    """Say how a GGUF file becomes a model folder."""
    return f"expected a model folder, found the file {file}: {_conversion(file.parent, file.name)}"


def _conversion(folder: Path, gguf: str) -> str:
    """Return the command that writes the weights of `folder` as safetensors into a new one."""
    source, target = str(folder), f"{folder / 'safetensors'}"
    option = f", gguf_file={gguf!r}" if gguf else ""
    return (
        'convert it with `python -c "from transformers import AutoModelForCausalLM as M, '
        f"AutoTokenizer as T; source, target = {source!r}, {target!r}; "
        f"M.from_pretrained(source{option}, dtype='auto').save_pretrained(target); "
        f'T.from_pretrained(source{option}).save_pretrained(target)"` '
        f"and set model.path to {target}"
    )
