"""Digests of the weights: a learner step that hashes every weight against one that does not.

Run: python -m tests.benchmarks.bench_step_digest [--models tiny smollm2-135m-instruct]
         [--lora 0 32] [--dtype float32] [--rounds 5] [--episodes 8]

Both ways make the same RL step and the same push through shared memory. "whole" also gathers all
weights, merged with their adapters, and hashes each tensor, as at a step with a checkpoint;
"pushed" takes the checksum that the push has computed anyway. The two ways alternate within one
process on one trainer. Every time is the median of the rounds, in seconds.
"""

import argparse
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from learner.backends.deepspeed_backend import DeepSpeedBackend
from learner.config import LearnerConfig
from learner.outputs.digest import push_metrics, tensor_digests, with_weight_digests
from learner.outputs.publish import SharedMemoryPublisher
from learner.pretrained.resolve import resolve_model
from learner.trainer import Trainer
from learner.trainer_setup import TrainerSetup
from rollout.config import ModelConfig
from rollout.weights.layout import push_layout
from tests.benchmarks.bench_learner import read_rows, table_of

Result = TypeVar("Result")
HEADINGS = ("model", "LoRA rank", "pushed MB", "RL step", "push", "whole hash", "whole / pushed")


class Clock:
    """Seconds of each part of the rounds."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"step": [], "push": [], "hash": []}

    def time(self, part: str, action: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = action()
        self.seconds[part].append(time.perf_counter() - start)
        return result

    def median(self, part: str) -> float:
        return statistics.median(self.seconds[part])


def make_trainer(path: Path, model: ModelConfig) -> Trainer:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {"lr": 1e-6, "zero_stage": 1, "drop_zero_variance": False}
    setup = TrainerSetup(
        rank=0,
        world_size=1,
        master_addr="127.0.0.1",
        master_port=port,
        model_path=str(path),
        model=model,
        learner=LearnerConfig.model_validate(config),
    )
    return Trainer(setup, DeepSpeedBackend)


def measure(model: ModelConfig, rounds: int, table: pa.Table, shm: Path) -> tuple[str, ...]:
    """Return a row of the table after the model's name. The first round is not counted."""
    path, rank = Path(model.path), model.lora.rank
    trainer, layout = make_trainer(path, model), push_layout(str(path), model)
    publisher = SharedMemoryPublisher(shm, layout)
    clock = Clock()
    for number in range(rounds + 1):
        if number == 1:
            clock = Clock()
        for whole in (True, False):
            report = clock.time("step", lambda: trainer.rl_step(table))
            assert report.metrics["trained_episodes"] > 0, "one episode alone has no advantage"
            if whole:
                digests = clock.time("hash", lambda: tensor_digests(trainer.named_weights()))
                with_weight_digests(report, digests)
            manifest = clock.time("push", lambda: publisher.publish(1, trainer.pushed_weights()))
            assert push_metrics(manifest)
    publisher.close()
    trainer.close()
    step, push, hashed = (clock.median(part) for part in ("step", "push", "hash"))
    ratio = (step + push + hashed) / (step + push)
    times = (f"{step:.3f}", f"{push:.3f}", f"{hashed:.3f}", f"{ratio:.2f}x")
    return (str(rank or "-"), f"{layout.nbytes / 1e6:.1f}", *times)


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of hashing all weights at every step.")
    parser.add_argument("--models", nargs="+", default=["tiny", "smollm2-135m-instruct"])
    parser.add_argument("--lora", nargs="+", type=int, default=[0, 32])
    parser.add_argument("--dtype", default="float32", help="bfloat16 steps are slow on most CPUs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--cache", type=Path, help="folder of converted models (else temporary)")
    chosen = parser.parse_args()
    shown = Table(*HEADINGS, title="seconds of one learner step, medians")
    rows = read_rows(chosen.episodes)
    with (
        tempfile.TemporaryDirectory() as scratch,
        tempfile.TemporaryDirectory(dir="/dev/shm") as shm,
    ):
        for name in chosen.models:
            path = resolve_model(name, chosen.cache or Path(scratch))
            for rank in chosen.lora:
                table = table_of(rows, apart=False, logprobs=None)
                section = {"path": str(path), "dtype": chosen.dtype, "lora": {"rank": rank}}
                model = ModelConfig.model_validate(section | {"max_model_len": 512})
                row = measure(model, chosen.rounds, table, Path(shm))
                print(name, *row, flush=True)
                shown.add_row(name, *row)
    Console().print(shown)


if __name__ == "__main__":
    main()
