"""The weights in a Hugging Face folder."""

from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from envs.errors import MissingError


def folder_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of every safetensors file in `folder`. Raises MissingError if none."""
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise MissingError(f"expected safetensors in {folder}, found none")
    for shard in shards:
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, tensors.get_tensor(name)
