"""The weight layout that a receiver accepts, read from the headers of a checkpoint."""

import json
import math
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from envs.errors import ConfigError, DataFileError
from rollout.config import LoraConfig, ModelConfig
from rollout.weights.manifest import WeightLayout
from rollout.weights.model_folder import read_architecture, text_section, weight_files

ADAPTER_PREFIX = "base_model.model."
"""What PEFT puts before the Hugging Face name of a layer that has adapters."""

HEAD = "lm_head.weight"
"""The output layer; it is no tensor of its own where it is tied to the embedding."""

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MAX_HEADER_BYTES = 100_000_000


def checkpoint_layout(model_path: str, dtype: str) -> WeightLayout:
    """Return the layout of the Hugging Face folder `model_path`, every tensor in `dtype`.

    Tensors come layer by layer. A tied `lm_head` has no slot: the embedding is its weight.
    Raises MissingError for a folder without safetensors, DataFileError for a broken header.
    """
    shapes = tensor_shapes(Path(model_path))
    return _laid_out([(name, shapes[name]) for name in sorted(shapes, key=_layer_order)], dtype)


def adapter_layout(model_path: str, dtype: str, lora: LoraConfig) -> WeightLayout:
    """Return the layout of the adapters on the folder `model_path`, in PEFT's names.

    Per target layer of shape (out, in): `lora_A` (rank, in), then `lora_B` (out, rank). Raises
    ConfigError if no layer matches a target.
    """
    shapes = tensor_shapes(Path(model_path))
    layers = [
        name.removesuffix(".weight")
        for name in sorted(shapes, key=_layer_order)
        if name.endswith(".weight") and name.split(".")[-2] in lora.target_modules
    ]
    if not layers:
        raise ConfigError(
            f"expected layers called {', '.join(lora.target_modules)} (model.lora.target_modules) "
            f"in {model_path}, found none"
        )
    factors = []
    for layer in layers:
        out, into = shapes[f"{layer}.weight"]
        factors.append((f"{ADAPTER_PREFIX}{layer}.lora_A.weight", (lora.rank, into)))
        factors.append((f"{ADAPTER_PREFIX}{layer}.lora_B.weight", (out, lora.rank)))
    return _laid_out(factors, dtype)


def push_layout(model_path: str, model: ModelConfig) -> WeightLayout:
    """Return the layout of a weight push: the adapters if there are any, else all weights."""
    if model.lora.rank:
        return adapter_layout(model_path, model.dtype, model.lora)
    return checkpoint_layout(model_path, model.dtype)


def _laid_out(shapes: Sequence[tuple[str, tuple[int, ...]]], dtype: str) -> WeightLayout:
    item = _ITEM_BYTES[dtype]
    return WeightLayout.of(
        [(name, dtype, shape, item * math.prod(shape)) for name, shape in shapes]
    )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the checkpoint in `folder`, without a tied `lm_head`."""
    shapes = {name: shape for file in weight_files(folder) for name, shape in _header(file)}
    if text_section(read_architecture(folder)).get("tie_word_embeddings", False):
        shapes.pop(HEAD, None)
    return shapes


def _header(shard: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of one safetensors file."""
    try:
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"header of {length} bytes")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, tuple(int(size) for size in entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise DataFileError(f"expected a safetensors header in {shard}, found {error!r}") from error


def _layer_order(name: str) -> list[tuple[int, str]]:
    """Sort numbers in names as numbers, so that a layer's tensors stay together."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
