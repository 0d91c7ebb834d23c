"""One learner rank with adapters: what a real test looks at, as JSON.

Usage: lora_main.py PORT FOLDER; FOLDER holds model/ and even.arrow.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from learner.backends.deepspeed_backend import DeepSpeedBackend
from learner.config import LearnerConfig
from learner.pretrained.folder import folder_weights
from learner.trainer import Trainer
from learner.trainer_setup import TrainerSetup
from rollout.config import ModelConfig

PORT, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
SETTINGS: dict[str, dict[str, Any]] = {
    "zero0": {"zero_stage": 0},
    "zero1-offload": {"zero_stage": 1, "offload_optimizer": "cpu"},
    "zero3": {"zero_stage": 3, "activation_checkpointing": True},
    "zero3-offload": {"zero_stage": 3, "offload_optimizer": "cpu", "offload_params": "cpu"},
}


def trainer(settings: dict[str, Any], rank: int = 4) -> Trainer:
    config = {"lr": 1e-2, "micro_batch_tokens": 64, "kl_coef": 0.1, **settings}
    model = {"path": str(FOLDER / "model"), "lora": {"rank": rank, "alpha": 8.0}}
    return Trainer(
        TrainerSetup(
            rank=0,
            world_size=1,
            master_addr="127.0.0.1",
            master_port=PORT,
            model_path=str(FOLDER / "model"),
            model=ModelConfig.model_validate(model),
            learner=LearnerConfig.model_validate(config),
        ),
        DeepSpeedBackend,
    )


def factors(one: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in one.pushed_weights()}


def table_of_episodes() -> pa.Table:
    with pa.ipc.open_file(FOLDER / "even.arrow") as reader:
        return reader.read_all()


def kl_to_base(one: Trainer, table: pa.Table) -> float:
    """Mean k3 estimate over sampled tokens of KL(present weights || weights without adapters)."""
    ratios = [base - now for base, now in zip(BASE, scores(one, table), strict=True)]
    return float(np.concatenate([np.expm1(ratio) - ratio for ratio in ratios]).mean())


def look_at(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    table = table_of_episodes()
    first = trainer(settings)
    reports = [first.rl_step(table) for _ in range(2)]
    first.save_checkpoint(FOLDER / f"checkpoint-{name}", step=2)
    expected_kl = kl_to_base(first, table)
    third = first.rl_step(table)
    second = trainer(settings)
    second.load_checkpoint(FOLDER / f"checkpoint-{name}")
    again = second.rl_step(table)
    ends = factors(first), factors(second)
    first.export_model(FOLDER / f"export-{name}")
    optimizer: Any = first._backend._engine.optimizer  # pyright: ignore
    inner = getattr(optimizer, "optimizer", optimizer)
    moments = [t for s in inner.state.values() for t in s.values() if torch.is_tensor(t)]
    return {
        "reference_kl": [report.metrics["reference_kl"] for report in [*reports, third]],
        "expected_kl": expected_kl,
        "resumed": all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0]),
        "losses": [third.metrics["loss"], again.metrics["loss"]],
        "names": sorted(ends[0]),
        "moved": sum(float(t.abs().sum()) > 0 for n, t in ends[0].items() if ".lora_B." in n),
        "trained": sum(tensor.numel() for tensor in ends[0].values()),
        "moment_bytes": sum(t.nbytes for t in moments if t.numel() > 1),
        "logprobs": [float(value.sum()) for value in map(torch.from_numpy, scores(first, table))],
    }


def scores(one: Trainer, table: pa.Table) -> list[NDArray[np.float32]]:
    return [values[~np.isnan(values)] for values in one.logprobs(table)]


def without_adapters() -> list[NDArray[np.float32]]:
    one = trainer({"kl_coef": 0.0}, rank=0)
    try:
        return scores(one, table_of_episodes())
    finally:
        one.close()


BASE = without_adapters()
found: dict[str, Any] = {name: look_at(name, settings) for name, settings in SETTINGS.items()}
found["tensors"] = len(list(folder_weights(FOLDER / "model")))
(FOLDER / "found.json").write_text(json.dumps(found))
