"""Rollout tokens/s of the whole stack against raw vLLM on the same prompts and counts; one table.

Run: python tests/benchmarks/bench_rollout.py --model tiny|smollm2|PATH [--episodes 64]

The stack plays trial episodes of the catalog: runner, chat template, tool server and sandboxed
calls, vLLM with behaviour logprobs. What an untrained model would write calls no tool, so vLLM
samples every token of a turn and the scripted teacher's turn of the same length takes its place.
Raw vLLM then generates each recorded turn again from the same prompt, the same number of requests
at a time, without logprobs and without waiting for tools. Both start from an empty prefix cache.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from vllm import SamplingParams as VllmSamplingParams
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind

from cluster.fleet.balanced_tools import LocalTools
from envs.config import ToolServerConfig
from envs.seeds import stable_hash
from envs.tasks import Task
from envs.tasksets.catalog.environment import CatalogEnvironment
from envs.tasksets.catalog.teacher import trial_reply
from envs.tools import ToolService
from learner.pretrained.resolve import SMOLLM2, resolve_model
from rollout.chat.template import ChatTemplate
from rollout.config import EngineConfig, EpisodeConfig, ModelConfig
from rollout.engine import Completion, Prompt, SamplingParams
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.engines.vllm_engine import VllmEngine
from rollout.engines.vllm_environment import engine_environment
from rollout.episode import Episode, Lease, RolloutKind
from rollout.runner import EpisodeRunner, Identity

MAX_MODEL_LEN = 512


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """One request as the stack made it."""

    prompt: tuple[int, ...]
    tokens: int


class LoadEngine(ScriptedEngine):
    """Lets vLLM sample as many tokens as the teacher's turn has, and answers with that turn."""

    def __init__(self, vllm: VllmEngine, template: ChatTemplate) -> None:
        super().__init__(trial_reply, template)
        self._vllm = vllm
        self.turns: list[RecordedTurn] = []

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        turn = await super().sample(prompt, params)
        count = len(turn.token_ids)
        sampled = await self._vllm.sample(prompt, replace(params, max_tokens=count))
        self.turns.append(RecordedTurn(tuple(prompt.token_ids), len(sampled.token_ids)))
        return replace(turn, logprobs=sampled.logprobs, spans=sampled.spans)


async def play(
    runner: EpisodeRunner, tasks: Sequence[Task], concurrency: int
) -> tuple[list[Episode], float]:
    """Return the episodes, and the seconds that they took together."""
    config = EpisodeConfig.model_validate({"prompt": "compact"})
    room = asyncio.Semaphore(concurrency)

    async def one(index: int, task: Task) -> Episode:
        async with room:
            name = f"e{index}"
            lease = Lease(
                run="bench",
                episode=name,
                kind=RolloutKind.TRAIN,
                group=name,
                group_number=0,
                task=task.id,
                sample_index=0,
                attempt=0,
                seed=stable_hash("bench", index),
            )
            return await runner.run_episode(lease, task, config)

    start = time.perf_counter()
    episodes = await asyncio.gather(*[one(*pair) for pair in enumerate(tasks)])
    return list(episodes), time.perf_counter() - start


async def generate_raw(
    engine: VllmEngine, turns: Sequence[RecordedTurn], concurrency: int
) -> float:
    """Generate every recorded turn with vLLM alone; returns the seconds it took."""
    llm = engine._llm
    assert llm is not None
    room = asyncio.Semaphore(concurrency)

    async def one(index: int, turn: RecordedTurn) -> None:
        params = VllmSamplingParams(
            max_tokens=turn.tokens,
            temperature=1.0,
            detokenize=False,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        async with room:
            async for _ in llm.generate(tokens_input(list(turn.prompt)), params, f"raw{index}"):
                pass

    await llm.reset_prefix_cache()
    start = time.perf_counter()
    await asyncio.gather(*[one(*pair) for pair in enumerate(turns)])
    return time.perf_counter() - start


async def measure(model: str, episodes: int, concurrency: int, scratch: Path) -> Table:
    path = resolve_model(SMOLLM2 if model == "smollm2" else model, scratch)
    template = ChatTemplate.load(path)
    engine = VllmEngine(
        EngineSpec(
            model_path=str(path),
            model=ModelConfig.model_validate(
                {
                    "max_model_len": MAX_MODEL_LEN,
                    "dtype": "float32" if model == "tiny" else "bfloat16",
                }
            ),
            engine=EngineConfig.model_validate({"max_num_seqs": concurrency}),
            seed=0,
        ),
        stop_token_ids=(),
    )
    tools = LocalTools("bench", ToolServerConfig())
    await tools.start()
    await engine.start()
    try:
        return await _compare(engine, tools, template, (model, episodes, concurrency))
    finally:
        await engine.close()
        await tools.close()


async def _compare(
    engine: VllmEngine,
    tools: ToolService,
    template: ChatTemplate,
    size: tuple[str, int, int],
) -> Table:
    """Play, then replay; a short first pass of both is not counted."""
    model, episodes, concurrency = size
    identity = Identity(worker="bench", max_model_len=MAX_MODEL_LEN)
    tasks = CatalogEnvironment().tasks("train", 0, episodes)
    warm = LoadEngine(engine, template)
    await play(EpisodeRunner(warm, tools, template, identity), tasks[:4], concurrency)
    await generate_raw(engine, warm.turns, concurrency)
    load = LoadEngine(engine, template)
    runner = EpisodeRunner(load, tools, template, identity)
    played, stack_s = await play(runner, tasks, concurrency)
    raw_s = await generate_raw(engine, load.turns, concurrency)
    tokens = sum(turn.tokens for turn in load.turns)
    calls = sum(len(episode.calls) for episode in played)
    outcomes = sorted({str(episode.outcome) for episode in played})
    table = Table(
        title=f"rollout, {model}: {episodes} episodes ({', '.join(outcomes)}), "
        f"{concurrency} at once, {len(load.turns)} turns, {calls} tool calls, {tokens} tokens"
    )
    for column in ("way", "seconds", "tokens/s", "of raw"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, took in (("whole stack", stack_s), ("raw vLLM", raw_s)):
        table.add_row(way, f"{took:.2f}", f"{tokens / took:.0f}", f"{raw_s / took:.2f}x")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, or a Hugging Face folder")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=32)
    arguments = parser.parse_args()
    os.environ.update(engine_environment(gpu=False))
    with tempfile.TemporaryDirectory() as scratch:
        table = asyncio.run(
            measure(arguments.model, arguments.episodes, arguments.concurrency, Path(scratch))
        )
    Console().print(table)


if __name__ == "__main__":
    main()
