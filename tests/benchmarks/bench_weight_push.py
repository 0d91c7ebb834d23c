"""Weight push against vLLM's own reload from a cached file, and against a new engine; one table.

Run: python tests/benchmarks/bench_weight_push.py --model tiny|smollm2|PATH [--rounds 7]

A push is timed from trained tensors to an
engine that serves them: write, checksum, pause, transfer, resume. The reload is `reload_weights`
alone, in the same engine, from a file of the same bytes that is in the page cache.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from learner.outputs.publish import SharedMemoryPublisher
from learner.pretrained.resolve import SMOLLM2, resolve_model
from rollout.config import EngineConfig, ModelConfig
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.vllm_engine import VllmEngine
from rollout.engines.vllm_environment import engine_environment

Weights = dict[str, torch.Tensor]


def engine_of(path: Path, dtype: str) -> VllmEngine:
    spec = EngineSpec(
        model_path=str(path),
        model=ModelConfig.model_validate({"max_model_len": 512, "dtype": dtype}),
        engine=EngineConfig.model_validate({"kv_cache_mib": 64}),
        seed=0,
    )
    return VllmEngine(spec, stop_token_ids=(0,))


async def seconds(action: Callable[[], Awaitable[object]]) -> float:
    start = time.perf_counter()
    await action()
    return time.perf_counter() - start


async def measure(model: str, rounds: int, scratch: Path) -> list[tuple[str, float]]:
    """Return seconds of a push, of a reload and of save + a new engine; the first two medians."""
    path = resolve_model(SMOLLM2 if model == "smollm2" else model, scratch)
    weights: Weights = {}
    for shard in sorted(path.glob("*.safetensors")):
        weights |= load_file(shard)
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    engine = engine_of(path, dtype)
    await engine.start()
    weights = {slot.name: weights[slot.name].clone() for slot in engine.layout.slots}
    publisher = SharedMemoryPublisher(Path("/dev/shm"), engine.layout)
    llm = engine._llm
    assert llm is not None
    try:

        async def push() -> None:
            await engine.load_weights(publisher.publish(engine.version + 1, weights.items()))

        async def reload() -> None:
            await llm.collective_rpc("reload_weights")

        pairs = [(await seconds(push), await seconds(reload)) for _ in range(rounds + 2)][2:]
    finally:
        publisher.close()
        await engine.close()

    trained = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    fresh = engine_of(scratch / "next", dtype)

    async def anew() -> None:
        trained.save_pretrained(scratch / "next")
        await fresh.start()

    took = await seconds(anew)
    await fresh.close()
    return [
        ("push: write + load", statistics.median(push for push, _ in pairs)),
        ("vLLM reload_weights, cached file", statistics.median(reload for _, reload in pairs)),
        ("save + new engine", took),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, or a Hugging Face folder")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    os.environ.update(engine_environment(gpu=False))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        rows = asyncio.run(measure(arguments.model, arguments.rounds, Path(scratch)))
    table = Table(title=f"weight push, {arguments.model}, median of {arguments.rounds}")
    for column in ("way", "seconds", "of a push"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, took in rows:
        table.add_row(way, f"{took:.3f}", f"{took / rows[0][1]:.2f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
