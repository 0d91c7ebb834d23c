"""One learner rank of the real tests: runs every ZeRO stage in one process and writes what it saw.

Usage: rank_main.py RANK WORLD_SIZE PORT FOLDER; FOLDER holds model/ and the tests' Arrow files.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch

from envs.errors import ConfigError, LearnerError, MissingError
from learner.backends.deepspeed_backend import DeepSpeedBackend
from learner.config import LearnerConfig, OptimizerSection, SftConfig
from learner.trainer import Trainer
from learner.trainer_setup import TrainerSetup
from rollout.config import ModelConfig

RANK, WORLD_SIZE, PORT = (int(text) for text in sys.argv[1:4])
FOLDER = Path(sys.argv[4])
Dtype = Literal["float32", "bfloat16", "float16"]
OUT = FOLDER / f"world{WORLD_SIZE}"
SMALL: dict[str, Any] = {
    "lr": 1e-3,
    "micro_batch_tokens": 64,
    "max_grad_norm": 0.5,
    "weight_decay": 0.1,
}


def table(name: str) -> pa.Table:
    with pa.ipc.open_file(FOLDER / f"{name}.arrow") as reader:
        return reader.read_all()


def trainer(
    config: LearnerConfig, sft: SftConfig | None = None, dtype: Dtype = "float32"
) -> Trainer:
    return Trainer(
        TrainerSetup(
            rank=RANK,
            world_size=WORLD_SIZE,
            master_addr="127.0.0.1",
            master_port=PORT,
            model_path=str(FOLDER / "model"),
            model=ModelConfig(path=str(FOLDER / "model"), dtype=dtype, chat_template="chatml"),
            learner=config,
            sft=sft,
        ),
        DeepSpeedBackend,
    )


def weights(one: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in one.named_weights()}


def digest(one: Trainer) -> str:
    total = hashlib.sha256()
    for name, tensor in one.named_weights():
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def train(stage: int) -> dict[str, Any]:
    """Three steps; save after the second; a fresh trainer resumes and must repeat the third."""
    config = LearnerConfig.model_validate({**SMALL, "zero_stage": stage, "max_skipped_steps": 0})
    first = trainer(config)
    reports = [first.rl_step(table("even")) for _ in range(2)]
    first.save_checkpoint(OUT / f"checkpoint{stage}", step=2)
    third = first.rl_step(table("uneven"))
    end = digest(first)
    found: dict[str, Any] = {"losses": [report.metrics["loss"] for report in [*reports, third]]}
    found["metrics"] = reports[0].metrics
    annotations = reports[0].annotations
    found["annotated"] = annotations.to_pylist() if annotations else None
    if RANK == 0:
        torch.save(weights(first), OUT / f"weights{stage}.pt")
    else:
        weights(first)
    found["poison"] = poison(first)
    found["unharmed"] = digest(first) == end
    first.rl_step(table("even"))
    if stage in (0, 3):
        torch.save(first.logprobs(table("even")), OUT / f"logprobs{stage}.{RANK}.pt")
        first.export_model(OUT / f"export{stage}")
    first.close()
    second = trainer(config)
    found["resumed_at"] = second.load_checkpoint(OUT / f"checkpoint{stage}")
    found["resumed_loss"] = second.rl_step(table("uneven")).metrics["loss"]
    found["resumed_exactly"] = digest(second) == end
    found["lone"] = second.rl_step(table("lone")).metrics
    found["nothing"] = second.rl_step(table("nothing")).metrics
    second.close()
    return found


def poison(one: Trainer) -> str:
    try:
        one.rl_step(table("poison"))
    except LearnerError as error:
        return str(error)
    return ""


def refusals() -> dict[str, str]:
    """Loading what must not be loaded."""
    one = trainer(LearnerConfig.model_validate({**SMALL, "zero_stage": 1}))
    unfinished = OUT / "unfinished"
    unfinished.mkdir(exist_ok=True)
    found: dict[str, str] = {}
    for name in ("checkpoint0", "unfinished", "nowhere", "other"):
        try:
            one.load_checkpoint(OUT / name)
        except (ConfigError, LearnerError, MissingError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    one.close()
    return found


def disagreement() -> str:
    """What a rank says to a table that the other ranks did not get; nothing when it is alone."""
    one = trainer(LearnerConfig.model_validate(SMALL))
    try:
        one.rl_step(table("even").slice(4 * RANK, 4))
    except LearnerError as error:
        return str(error)
    finally:
        one.close()
    return ""


def train_sft(section: OptimizerSection) -> list[dict[str, float]]:
    one = trainer(LearnerConfig(), SftConfig.model_validate(section.model_dump() | {"epochs": 2}))
    metrics = list(one.sft(table("even"), seed=7))
    one.close()
    return metrics


def resumed_sft() -> dict[str, Any]:
    """Eight steps, two of them poisoned; another trainer repeats what came after the third made."""
    section = {**SMALL, "batch_tokens": 24, "epochs": 2, "zero_stage": 0, "optimizer": "muon"}
    config, path = SftConfig.model_validate(section), OUT / "checkpoint_sft"
    first, rows = trainer(LearnerConfig(), config), []
    for row in first.sft(table("poison"), seed=7):
        rows.append(row)
        if len(rows) == 3:
            first.save_checkpoint(path, step=int(row["step"]))
    end = digest(first)
    first.close()
    second = trainer(LearnerConfig(), config)
    done = second.load_checkpoint(path)
    again = list(second.sft(table("poison"), seed=7, steps_done=done))
    exactly = digest(second) == end
    second.close()
    told = [
        [(row["step"], row["loss"], row["lr"], row["skipped"]) for row in half]
        for half in (rows[3:], again)
    ]
    return {"exactly": exactly, "told": told}


def poisoned_sft() -> list[float]:
    """Steps that two epochs make of four episodes, one of which is poisoned, a step each."""
    section = {**SMALL, "batch_tokens": 24, "epochs": 2, "max_skipped_steps": 1}
    one = trainer(LearnerConfig(), SftConfig.model_validate(section))
    steps = [row["step"] for row in one.sft(table("poison"), seed=7)]
    one.close()
    return steps


def options() -> dict[str, dict[str, float]]:
    """Every loss and the reference copy, over several updates of one step."""
    found = {}
    for name, section in {
        "proximal": {
            "ratio_reference": "proximal",
            "minibatches": 2,
            "ppo_epochs": 2,
            "zero_stage": 1,
        },
        "reference": {"kl_coef": 0.1, "loss": "cispo", "minibatches": 2, "zero_stage": 3},
        "gspo": {
            "loss": "gspo",
            "aggregation": "sequence_mean",
            "max_sequence_dlogp": 9.0,
            "zero_stage": 2,
        },
        "checkpointing": {"activation_checkpointing": True, "zero_stage": 3},
    }.items():
        one = trainer(LearnerConfig.model_validate({**SMALL, **section}))
        found[name] = one.rl_step(table("even")).metrics
        one.close()
    return found


def chunks() -> dict[str, dict[str, float]]:
    """Logits whole, and in chunks of which ranks have different numbers, of one very long episode.

    Under ZeRO 3 every use of the head's weights is a collective: were there one per chunk, ranks
    would wait for each other for ever.
    """
    found = {}
    for name, stage in (("whole", 0), ("chunked", 3)):
        one = trainer(LearnerConfig.model_validate({**SMALL, "zero_stage": stage}))
        backend = one._backend
        assert isinstance(backend, DeepSpeedBackend)
        if name == "chunked":
            backend._module.chunk_logits = 64 * 5
        found[name] = one.rl_step(table("uneven")).metrics
        one.close()
    return found


def main() -> None:
    OUT.mkdir(exist_ok=True)
    found: dict[str, Any] = {f"stage{stage}": train(stage) for stage in range(4)}
    found["refusals"] = refusals()
    found["options"] = options()
    found["chunks"] = chunks()
    found["disagreement"] = disagreement()
    sft = {**SMALL, "lr": 3e-3}
    found["sft"] = train_sft(OptimizerSection.model_validate({**sft, "zero_stage": 1}))
    found["muon"] = train_sft(
        OptimizerSection.model_validate({**sft, "zero_stage": 0, "optimizer": "muon"})
    )
    found["poisoned_sft"] = poisoned_sft()
    found["resumed_sft"] = resumed_sft()
    low = trainer(LearnerConfig.model_validate({**SMALL, "zero_stage": 2}), dtype="bfloat16")
    found["bfloat16"] = low.rl_step(table("even")).metrics
    low.close()
    (OUT / f"found{RANK}.json").write_text(json.dumps(found))


main()
