"""A vLLM engine that gets the answers of tools late, by a file that says how late."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from cluster.fleet.vllm_factory import make_engine as make_vllm
from envs.seeds import stable_hash
from rollout.chat.template import ChatTemplate
from rollout.engine import Completion, Engine, Prompt, SamplingParams
from rollout.engines.engine_spec import EngineSpec

WHERE = "TRIALRUN_BENCH_LATENCY"
"""Environment variable: a file with the name of a latency."""
_TAIL_S = 5.0


def latency_s(name: str, draw: Random) -> float:
    """Return the seconds of one tool call.

    `tail` is a Pareto distribution from 0.1 s on with exponent 1, cut at 5 s: mean 0.5 s, one call
    in fifty takes the full 5 s.
    """
    match name:
        case "tail":
            return min(0.1 / (1.0 - draw.random()), _TAIL_S)
        case _:
            return float(name) / 1000.0


@dataclass
class SlowAnswers:
    """An Engine; every other method is that of the engine inside."""

    engine: Engine
    switch: Path

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """Wait as long as the tool takes whose answer this turn reads, then continue `prompt`."""
        if prompt.messages and prompt.messages[-1].role == "tool":
            draw = Random(stable_hash(prompt.seed, len(prompt.token_ids)))
            await asyncio.sleep(latency_s(self.switch.read_text(), draw))
        return await self.engine.sample(prompt, params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def make_engine(template: ChatTemplate, spec: EngineSpec) -> Any:
    """Return vLLM with late answers."""
    return SlowAnswers(make_vllm(template, spec), Path(os.environ[WHERE]))
