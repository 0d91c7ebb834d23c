"""The layout a receiver accepts, from the headers of a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from envs.errors import DataFileError, MissingError
from rollout.weights.layout import checkpoint_layout

SHAPES = {
    "model.embed_tokens.weight": (6, 4),
    "model.layers.10.mlp.weight": (3, 4),
    "model.layers.2.mlp.weight": (3, 4),
    "lm_head.weight": (6, 4),
}


def write_checkpoint(folder: Path, config: dict[str, object]) -> None:
    tensors = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    names = sorted(tensors)
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    placed = {name: files[position // 2] for position, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    save_file(
        {name: tensors[name] for name in names[:2]}, folder / "model-00001-of-00002.safetensors"
    )
    save_file(
        {name: tensors[name] for name in names[2:]}, folder / "model-00002-of-00002.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config))


def test_tensors_of_all_shards_in_layer_order_and_the_asked_dtype(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"tie_word_embeddings": False})
    layout = checkpoint_layout(str(tmp_path), "bfloat16")
    assert [slot.name for slot in layout.slots] == [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.2.mlp.weight",
        "model.layers.10.mlp.weight",
    ]
    assert {slot.dtype for slot in layout.slots} == {"bfloat16"}
    assert [slot.nbytes for slot in layout.slots] == [48, 48, 24, 24]
    assert all(slot.shape == SHAPES[slot.name] for slot in layout.slots)


def test_a_tied_head_has_no_slot(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"tie_word_embeddings": True})
    names = [slot.name for slot in checkpoint_layout(str(tmp_path), "float32").slots]
    assert "lm_head.weight" not in names and len(names) == 3


def test_no_checkpoint_says_where(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="safetensors"):
        checkpoint_layout(str(tmp_path), "float32")


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_a_broken_header_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DataFileError, match=r"model\.safetensors"):
        checkpoint_layout(str(tmp_path), "float32")
