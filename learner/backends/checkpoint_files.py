"""What checkpoint files may contain: they are pickles, which run code when they are loaded.

DeepSpeed loads them without restrictions. So each file is read before by torch's restricted
unpickler, which makes tensors, plain values and objects of listed classes, and calls nothing else.
What passes it cannot run code of its own when DeepSpeed reads it.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct

from envs.errors import LearnerError

_PLAIN: Sequence[Any] = (
    np.ndarray,
    np.dtype,
    _reconstruct,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int64", "int32", "uint32", "bool")),
)
"""Numpy's arrays: the states of random number generators hold some."""


def check_files(folder: Path, listed: Sequence[type]) -> None:
    """Check that all `.pt` files below `folder` hold only tensors, plain values, and objects of the
    classes `listed`. Raises LearnerError.
    """
    with torch.serialization.safe_globals([*_PLAIN, *listed]):
        for path in sorted(folder.rglob("*.pt")):
            if not path.is_file():
                raise LearnerError(f"expected a checkpoint file at {path}, found something else")
            try:
                # Mapped: what is checked is the pickle, and the tensors are not read.
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
                raise LearnerError(
                    f"the checkpoint file {path} is damaged or holds what no checkpoint of this "
                    f"project does, and loading it could run code: {_reason(error)}. Remove this "
                    "checkpoint and resume from an older one, or start a new run"
                ) from error


def _reason(error: Exception) -> str:
    """Return the sentence of torch's long message that names what it found."""
    text = " ".join(str(error).split())
    start = text.find("Unsupported")
    return (text[max(start, 0) :] or type(error).__name__)[:200]
