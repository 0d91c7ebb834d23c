"""An engine whose turns come from a Python function: for teachers, unit tests and screenshots."""

import math

from envs.errors import WeightSyncError
from envs.messages import Reply
from rollout.chat.template import ChatTemplate
from rollout.engine import Completion, Prompt, SamplingParams, VersionSpan
from rollout.engines.student_format import StudentFormat
from rollout.weights.manifest import WeightManifest


class ScriptedEngine:
    """Engine whose turns are the texts of `reply`; nothing is sampled, so logprobs are NaN.

    With `student`, `reply` reads and writes Hermes calls, whatever format the student's model has.
    """

    def __init__(
        self, reply: Reply, template: ChatTemplate, student: StudentFormat | None = None
    ) -> None:
        self._reply = reply
        self._student = student
        self._template = template
        self._version = 0

    @property
    def version(self) -> int:
        return self._version

    async def start(self) -> None: ...

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        text = self._text(prompt)
        ids = [*self._template.encode(text), self._template.end_of(text)]
        cut = ids[: params.max_tokens]
        return Completion(
            tuple(cut),
            (math.nan,) * len(cut),
            (VersionSpan(0, self._version),),
            "stop" if len(cut) == len(ids) else "length",
        )

    def _text(self, prompt: Prompt) -> str:
        if self._student is None:
            return self._reply(prompt.messages, prompt.seed)
        text = self._reply(self._student.read(prompt.messages), prompt.seed)
        return self._student.written(text, prompt.token_ids)

    async def load_weights(self, manifest: WeightManifest) -> None:
        if manifest.version < self._version:
            raise WeightSyncError(
                f"expected a version of at least {self._version}, found {manifest.version}"
            )
        self._version = manifest.version

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def close(self) -> None: ...
