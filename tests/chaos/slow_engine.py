"""A vLLM engine that waits before each turn.

On a few cores, episodes that never wait would take the time that lost processes need to start.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from cluster.fleet.vllm_factory import make_engine as make_vllm
from rollout.chat.template import ChatTemplate
from rollout.engine import Completion, Engine, Prompt, SamplingParams
from rollout.engines.engine_spec import EngineSpec

FACTORY = "tests.chaos.slow_engine:make_engine"
_WAIT_S = 0.7


@dataclass
class SlowEngine:
    """An Engine; every other method is that of the engine inside."""

    engine: Engine

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        await asyncio.sleep(_WAIT_S)
        return await self.engine.sample(prompt, params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def make_engine(template: ChatTemplate, spec: EngineSpec) -> Any:
    """Return a slow engine."""
    return SlowEngine(make_vllm(template, spec))
