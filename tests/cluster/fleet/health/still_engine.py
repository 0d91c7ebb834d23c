"""An engine whose work another process does: `sleep`, which tests stop and kill."""

import asyncio
import subprocess
from collections.abc import Sequence

from envs.errors import EngineError
from rollout.chat.template import ChatTemplate
from rollout.engine import Completion, Engine, Prompt, SamplingParams
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.scripted_engine import ScriptedEngine

FACTORY = f"{__name__}:make_engine"


class StillEngine(ScriptedEngine):
    """Answers nothing, so that episodes last; its core is a process of its own."""

    core: "subprocess.Popen[bytes] | None" = None

    async def start(self) -> None:
        self.core = subprocess.Popen(["sleep", "600"])
        await super().start()

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets the event")

    @property
    def process_ids(self) -> Sequence[int]:
        return [self.core.pid] if self.core is not None else []

    async def ping(self) -> None:
        if self.core is None or self.core.poll() is not None:
            raise EngineError("its process died")

    async def close(self) -> None:
        if self.core is not None:
            self.core.kill()
            self.core.wait()


def make_engine(template: ChatTemplate, spec: EngineSpec) -> Engine:
    del spec
    return StillEngine(lambda messages, seed: "<answer>1</answer>", template)
