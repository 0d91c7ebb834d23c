"""Models of the Hugging Face Hub, downloaded once to a folder that every node can read."""

import re
import shutil
from pathlib import Path

import httpx2
from huggingface_hub import snapshot_download

from envs.errors import MissingError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""An id such as `Qwen/Qwen2.5-0.5B`."""
_LEFT_OUT = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "original/*")
"""The same weights in formats that are not read."""
_ANSWER_S = 10.0


def download(model: str, folder: Path, endpoint: str | None = None) -> Path:
    """Return the folder of the Hub's `model` below `folder`, downloaded if it is not there.

    A download that was interrupted goes on. `endpoint` is the Hub's address, None for the usual one
    (HF_ENDPOINT). Raises MissingError where the Hub cannot be reached or
    does not give the model.
    """
    target = folder / model.replace("/", "--")
    if (target / "config.json").is_file():
        return target
    partial = target.with_name(f".{target.name}.partial")
    try:
        snapshot_download(
            model,
            local_dir=partial,
            ignore_patterns=list(_LEFT_OUT),
            etag_timeout=_ANSWER_S,
            endpoint=endpoint,
        )
    except (OSError, ValueError, httpx2.HTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MissingError(
            f"expected a model folder or a model of the Hugging Face Hub in model.path, found "
            f"{model!r}, which could not be downloaded ({reason}). Type `hf download {model} "
            f"--local-dir {target}` on a machine that reaches the Hub and sees this folder, then "
            "the same command again; a gated model also needs `hf auth login` or HF_TOKEN"
        ) from error
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    if not (partial / "config.json").is_file():
        raise MissingError(
            f"expected config.json in the Hub's {model}, found none: no language model"
        )
    try:
        partial.rename(target)
    except OSError:  # another process was first
        if not (target / "config.json").is_file():
            raise
    return target
