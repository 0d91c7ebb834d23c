"""An engine that answers episodes with even seeds once a file exists, and others never."""

import asyncio
import os
from pathlib import Path

from rollout.chat.template import ChatTemplate
from rollout.engine import Completion, Engine, Prompt, SamplingParams
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.scripted_engine import ScriptedEngine

FACTORY = f"{__name__}:make_engine"
GATE = "TRIALRUN_TEST_GATE"
"""Variable with the path of the file."""


class WaitingEngine(ScriptedEngine):
    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        while prompt.seed % 2 or not Path(os.environ[GATE]).exists():
            await asyncio.sleep(0.05)
        return await super().sample(prompt, params)


def make_engine(template: ChatTemplate, spec: EngineSpec) -> Engine:
    del spec
    return WaitingEngine(lambda messages, seed: "<answer>1</answer>", template)
