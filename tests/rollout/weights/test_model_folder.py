"""Which files of a model folder count, and what its config.json says of its layers."""

import json
from pathlib import Path

import pytest

from envs.errors import DataFileError, MissingError
from rollout.weights.model_folder import (
    gguf_advice,
    mixing_layers,
    read_architecture,
    text_section,
    weight_files,
)

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def write(folder: Path, *names: str, index: list[str] | None = None) -> None:
    for name in names:
        (folder / name).touch()
    if index is not None:
        content = {"weight_map": {f"t{number}": name for number, name in enumerate(index)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def test_the_index_decides_which_files_count(tmp_path: Path) -> None:
    write(tmp_path, *SHARDS, "consolidated.safetensors", "old.safetensors", index=SHARDS)
    assert [file.name for file in weight_files(tmp_path)] == SHARDS


def test_without_an_index_the_one_file_counts_alone(tmp_path: Path) -> None:
    write(tmp_path, "model.safetensors", "consolidated.safetensors")
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], "found no safetensors files"),
        (["consolidated.safetensors"], "found only consolidated.safetensors"),
        (
            ["pytorch_model.bin"],
            r"model.bin: convert it .*M.from_pretrained\(source, dtype",
        ),
        (["m.Q4.gguf"], r"m.Q4.gguf: convert it .*gguf_file='m.Q4.gguf'.*set model.path to"),
    ],
)
def test_other_formats_are_refused_with_the_way(
    tmp_path: Path, files: list[str], found: str
) -> None:
    write(tmp_path, *files)
    with pytest.raises(MissingError, match=found):
        weight_files(tmp_path)


def test_a_missing_shard_and_two_sets_of_weights_are_named(tmp_path: Path) -> None:
    write(tmp_path, SHARDS[0], index=SHARDS)
    with pytest.raises(MissingError, match=f"found no {SHARDS[1]}"):
        weight_files(tmp_path)
    write(tmp_path, SHARDS[1], "model.safetensors")
    with pytest.raises(MissingError, match="transformers reads the one and vLLM the other"):
        weight_files(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"weight_map": 3}'])
def test_a_broken_index_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(DataFileError, match=r"model\.safetensors\.index\.json"):
        weight_files(tmp_path)


@pytest.mark.parametrize("content", ["[1]", "{", "\xff"])
def test_a_broken_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataFileError, match=r"config\.json"):
        read_architecture(tmp_path)


def test_a_gguf_file_is_refused_with_the_way(tmp_path: Path) -> None:
    assert "gguf_file='m.gguf'" in gguf_advice(tmp_path / "m.gguf")


def test_nested_keys_win() -> None:
    nested = {"hidden_size": 1, "text_config": {"hidden_size": 2, "vocab_size": 3}}
    assert text_section(nested) | {"text_config": 0} == {
        "hidden_size": 2,
        "vocab_size": 3,
        "text_config": 0,
    }
    assert text_section({"hidden_size": 1}) == {"hidden_size": 1}


@pytest.mark.parametrize(
    ("architecture", "mixing"),
    [
        ({}, []),
        ({"layer_types": ["full_attention", "sliding_attention"]}, []),
        ({"layer_types": ["conv", "full_attention", "conv"]}, ["conv"]),
        ({"text_config": {"layer_types": ["linear_attention"]}}, ["linear_attention"]),
        ({"layer_types": ["chunked_attention"]}, ["chunked_attention"]),
        ({"hybrid_override_pattern": "M-M*"}, ["hybrid_override_pattern"]),
        ({"mamba_d_state": 128, "mamba_num_heads": 0}, ["mamba_d_state"]),
    ],
)
def test_layers_that_mix_positions_are_told_by_kind(
    architecture: dict[str, object], mixing: list[str]
) -> None:
    assert mixing_layers(architecture) == mixing
