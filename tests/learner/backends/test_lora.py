"""Adapters under real DeepSpeed: resumed bit for bit, exported merged and alone, reference kept."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from learner.pretrained.folder import folder_weights
from rollout.config import LoraConfig
from rollout.weights.layout import adapter_layout

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[3]
LORA = LoraConfig(rank=4, alpha=8.0)
NAMES = ("zero0", "zero1-offload", "zero3", "zero3-offload")


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, llama_folder: Path, make_episode: Any, make_table: Any
) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    shutil.copytree(llama_folder, folder / "model")
    table = make_table(
        [make_episode(i, group=f"g{i // 4}", reward=float(i % 4 == 0)) for i in range(8)]
    )
    with pa.ipc.new_file(folder / "even.arrow", table.schema) as writer:
        writer.write_table(table)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("lora_main.py")), str(port), str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_step_is_the_same_bit_for_bit(found: dict[str, Any], name: str) -> None:
    assert found[name]["resumed"]
    assert found[name]["losses"][0] == found[name]["losses"][1]


@pytest.mark.parametrize("name", NAMES)
def test_only_adapters_are_trained_and_pushed(
    found: dict[str, Any], folder: Path, name: str
) -> None:
    layout = adapter_layout(str(folder / "model"), "float32", LORA)
    assert found[name]["names"] == sorted(slot.name for slot in layout.slots)
    assert found[name]["moved"] == len(layout.slots) // 2
    assert found[name]["moment_bytes"] == 8 * found[name]["trained"]


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_the_model_with_its_adapters_off(found: dict[str, Any], name: str) -> None:
    start, _, third = found[name]["reference_kl"]
    assert start == pytest.approx(0, abs=1e-6)  # the second factor starts at zero
    assert found[name]["expected_kl"] > 1e-3
    assert third == pytest.approx(found[name]["expected_kl"], rel=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_and_offload_learns_the_same(found: dict[str, Any], name: str) -> None:
    assert found[name]["logprobs"] == pytest.approx(found["zero0"]["logprobs"], abs=1e-3)


def test_the_exported_weights_are_the_adapters_merged(folder: Path) -> None:
    base = dict(folder_weights(folder / "model"))
    merged = dict(folder_weights(folder / "export-zero3"))
    adapters = load_file(folder / "export-zero3" / "adapter" / "adapter_model.safetensors")
    assert merged.keys() == base.keys()
    for name, weight in merged.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        expected = base[name]
        if f"{stem}.lora_A.weight" in adapters:
            expected = expected + 2.0 * (
                adapters[f"{stem}.lora_B.weight"] @ adapters[f"{stem}.lora_A.weight"]
            )
        assert torch.allclose(weight, expected, atol=1e-6)
    assert not torch.equal(
        merged["model.layers.0.self_attn.q_proj.weight"],
        base["model.layers.0.self_attn.q_proj.weight"],
    )


def test_peft_reads_the_adapter_folder(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    adapted = peft.PeftModel.from_pretrained(base, folder / "export-zero0" / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(folder / "export-zero0").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-4)
