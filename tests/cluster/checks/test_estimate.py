"""Estimates of the shipped recipes: they fit, and what does not fit says what helps."""

import json
import math
import re
from pathlib import Path

import pytest

from cluster.checks.estimate import run_estimate
from cluster.config.run_config import load_config
from envs.errors import ConfigError, MissingError
from rollout.weights.layout import tensor_shapes
from tests.learner.families.tiny_families import FAMILIES, build_family


@pytest.mark.parametrize(
    ("recipe", "parameters", "trainable"),
    [
        ("qwen2.5-7b", 7_615_616_512, 7_615_616_512),
        ("qwen2.5-7b-lora", 7_615_616_512, 80_740_352),
        ("qwen2.5-0.5b", 494_032_768, 494_032_768),
        ("smollm2-toolhop", 134_515_008, 134_515_008),
    ],
)
def test_shipped_recipes_fit(recipe: str, parameters: int, trainable: int) -> None:
    estimate, result = run_estimate(load_config(recipe), 80.0, None)
    assert result["fits"]
    assert estimate.shape.parameters == parameters
    assert estimate.trainable == trainable
    assert estimate.push == 2 * trainable
    assert estimate.engines["default"].sequences > 1
    json.dumps(result)


def test_what_does_not_fit_says_what_helps() -> None:
    off = ["learner.activation_checkpointing=false", "sft.activation_checkpointing=false"]
    estimate, result = run_estimate(load_config("qwen2.5-7b", off), 80.0, None)
    assert not result["fits"]
    assert len(estimate.problems) == 2
    assert "learner.activation_checkpointing=true brings it to" in estimate.problems[0]


def test_a_small_gpu_needs_offload() -> None:
    estimate, _ = run_estimate(load_config("qwen2.5-7b"), 40.0, None)
    assert "offload_optimizer=cpu" in estimate.problems[0]


def test_a_reference_is_a_copy_unless_there_are_adapters() -> None:
    full, _ = run_estimate(load_config("qwen2.5-7b", ["learner.kl_coef=0.1"]), 80.0, None)
    low, _ = run_estimate(load_config("qwen2.5-7b-lora"), 80.0, None)
    assert full.ranks["learner"].reference == 2 * full.shape.parameters
    assert full.ranks["sft"].reference == 0
    assert low.ranks["learner"].reference == 0


def test_an_unknown_model_needs_its_config(tmp_path: Path) -> None:
    config = load_config("qwen2.5-7b", ["model.path=models/Nobody"])
    with pytest.raises(MissingError, match="--model-config"):
        run_estimate(config, 80.0, None)
    given = tmp_path / "config.json"
    given.write_text(
        json.dumps(
            {
                "model_type": "llama",
                "vocab_size": 100,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 32_768,
                "tie_word_embeddings": True,
            }
        )
    )
    estimate, _ = run_estimate(config, 80.0, given)
    # embedding, two layers of 4 h^2 + 3 h f + 2 h, final norm
    assert estimate.shape.parameters == 6_400 + 2 * (4 * 4_096 + 3 * 8_192 + 128) + 64


def test_sequences_beyond_the_positions_are_refused() -> None:
    config = load_config("qwen2.5-7b", ["model.max_model_len=65536"])
    with pytest.raises(ConfigError, match="at most 32768"):
        run_estimate(config, 80.0, None)


def test_adapters_need_shared_memory() -> None:
    with pytest.raises(ConfigError, match=r"needs cluster\.transport 'shm'"):
        load_config("qwen2.5-7b-lora", ["cluster.transport=cuda_ipc"])


@pytest.mark.parametrize("name", ["Gemma 3", "Qwen3.5"])
def test_a_model_for_images_and_text_is_estimated(tmp_path: Path, name: str) -> None:
    folder = build_family(FAMILIES[name], tmp_path / "model")
    config = load_config("catalog", [f"model.path={folder}", "model.max_model_len=256"])
    estimate, _ = run_estimate(config, 80.0, None)
    assert (estimate.shape.hidden, estimate.shape.layers, estimate.shape.positions) == (64, 2, 256)
    text = sum(
        math.prod(shape)
        for tensor, shape in tensor_shapes(folder).items()
        if not re.search(r"visual|vision", tensor)
    )
    assert text <= estimate.shape.parameters < 2 * text


def test_every_group_of_workers_is_estimated() -> None:
    small = "rollouts.groups.small={kv_cache_mib=1,workers=2}"
    estimate, result = run_estimate(load_config("catalog", [small]), 80.0, None)
    assert list(estimate.engines) == ["small"]
    both, _ = run_estimate(load_config("catalog", [small, "rollouts.workers=1"]), 80.0, None)
    assert list(both.engines) == ["default", "small"]
    assert both.host["engines"] > estimate.host["engines"]
    assert not result["fits"]
    (problem,) = both.problems
    assert problem.startswith("[rollouts.groups.small] the KV cache holds")
