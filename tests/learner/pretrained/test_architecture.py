"""Model folders that a learner cannot train are told from their files, with the way out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from envs.errors import ConfigError
from learner.pretrained.architecture import check_trained
from rollout.config import ModelConfig
from tests.learner.families.tiny_families import FAMILIES, build_family

Tensors = dict[str, torch.Tensor]


def folder_with(
    tmp_path: Path,
    change: Callable[[Tensors], object] = lambda tensors: None,
    family: str = "Qwen3",
    **keys: Any,
) -> Path:
    """Return the folder of a tiny model with changed tensors and keys of config.json."""
    folder = build_family(FAMILIES[family], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))
    return folder


NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop(NORM), rf"tensors that the checkpoint has not \(1: {NORM}\)"),
        (
            lambda t: t.update({NORM: torch.ones(7)}),
            rf"other shapes .*{NORM} \[64\] instead of \[7",
        ),
        (lambda t: t.update({"model.extra.weight": torch.ones(7)}), r"no use of.*model\.extra"),
        (lambda t: t.update({"lm_head.weight": t[EMBEDDING] + 1}), "tie_word_embeddings to false"),
    ],
    ids=["missing", "shape", "beyond", "untied"],
)
def test_tensors_that_differ_from_the_checkpoint_are_refused(
    tmp_path: Path, change: Callable[[Tensors], object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_trained(folder_with(tmp_path, change), ModelConfig())


def test_a_copy_of_the_embedding_as_head_is_no_second_weight(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, lambda t: t.update({"lm_head.weight": t[EMBEDDING].clone()}))
    assert check_trained(folder, ModelConfig()).carried == ()


@pytest.mark.parametrize("name", ["mtp.layers.0.weight", "mtp.norm.weight"])
def test_heads_that_transformers_leaves_out_are_carried(tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path, lambda t: t.update({name: torch.ones(3)}), family="Qwen3-Next")
    assert check_trained(folder, ModelConfig()).carried == (name,)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"model_type": "nobody"}, "model_type that transformers knows"),
        ({"model_type": "t5"}, "causal language model that transformers can build"),
        ({"model_type": "gpt_oss"}, "that transformers can build .*attention implementation"),
        ({"quantization_config": {"quant_method": "fp8"}}, "version of the model that is not quan"),
        ({"attn_logit_softcapping": 50.0}, "found attn_logit_softcapping"),
        ({"lm_head_multiplier": 0.04}, "found lm_head_multiplier"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_models_that_the_learner_does_not_compute_are_refused(
    tmp_path: Path, keys: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_trained(folder_with(tmp_path, **keys), ModelConfig())
