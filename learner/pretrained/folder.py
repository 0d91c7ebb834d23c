"""The weights in a Hugging Face folder."""

from collections.abc import Collection, Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from rollout.weights.model_folder import weight_files


def folder_weights(
    folder: Path, names: Collection[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of the checkpoint in `folder`, of all tensors or of those in `names`.

    Raises MissingError if there is no checkpoint.
    """
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                if names is None or name in names:
                    yield name, tensors.get_tensor(name)
