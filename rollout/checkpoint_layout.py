"""The weight layout that a receiver accepts, read from the headers of a checkpoint."""

import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from envs.errors import DataFileError, MissingError
from rollout.weights import WeightLayout

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MAX_HEADER_BYTES = 100_000_000


def checkpoint_layout(model_path: str, dtype: str) -> WeightLayout:
    """Return the layout of the Hugging Face folder `model_path`, every tensor in `dtype`.

    Tensors come layer by layer. A tied `lm_head` has no slot: the embedding is its weight.
    Raises MissingError for a folder without safetensors, DataFileError for a broken header.
    """
    folder = Path(model_path)
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise MissingError(
            f"expected safetensors files in {folder}, found none; export the model first"
        )
    shapes = {name: shape for shard in shards for name, shape in _header(shard)}
    if _is_tied(folder):
        shapes.pop("lm_head.weight", None)
    item = _ITEM_BYTES[dtype]
    return WeightLayout.of(
        [
            (name, dtype, shapes[name], item * math.prod(shapes[name]))
            for name in sorted(shapes, key=_layer_order)
        ]
    )


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


def _is_tied(folder: Path) -> bool:
    path = folder / "config.json"
    if not path.is_file():
        raise MissingError(f"expected a Hugging Face folder, found no {path}")
    return bool(json.loads(path.read_text()).get("tie_word_embeddings", False))


def _layer_order(name: str) -> list[tuple[int, str]]:
    """Sort numbers in names as numbers, so that a layer's tensors stay together."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
