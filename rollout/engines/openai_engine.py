"""An engine whose turns come from a chat endpoint, for teachers behind HTTP."""

import asyncio
import math
from dataclasses import dataclass, replace

from envs.errors import ConfigError, EngineError, TeacherError
from envs.messages import Message
from envs.tasks import Task
from envs.tools import JsonObject
from rollout.config import EpisodeConfig
from rollout.engine import Completion, Prompt, SamplingParams, VersionSpan
from rollout.engines.openai_client import ChatClient, Spending
from rollout.engines.openai_config import EndpointConfig
from rollout.engines.openai_prompt import TeacherNotes, unfit_name
from rollout.engines.openai_wire import (
    Said,
    native_messages,
    native_tools,
    prompt_messages,
    read_reply,
)
from rollout.template import ChatTemplate
from rollout.weights.manifest import WeightManifest

_EMPTY_TRIES = 3
"""Requests for one turn while the replies are empty; then the empty turn is used."""
_LONG_TEXT = 4_000
"""Texts of at least so many characters are tokenised off the event loop."""


@dataclass(frozen=True, slots=True)
class Part:
    """What the endpoint acts in: one task under one episode configuration."""

    task: Task
    episode: EpisodeConfig


class OpenAIEngine:
    """Engine for one episode; the endpoint's text is tokenised with the student's template.

    Nothing is sampled here, so logprobs are NaN. The instruction that the endpoint gets beyond the
    student's messages is in no token and no message of the episode. Tokens that steer the
    student's template (its roles, its end of turn) are taken out of the endpoint's text.
    """

    def __init__(
        self, client: ChatClient, config: EndpointConfig, template: ChatTemplate, part: Part
    ) -> None:
        self._client = client
        self._config = config
        self._template = template
        self._part = part
        self._instruction = TeacherNotes(part.episode, config.tool_format).text()
        self.spent = Spending()
        """Requests and tokens that this episode used."""

    @property
    def version(self) -> int:
        return 0

    async def start(self) -> None:
        """Check that the endpoint accepts the tools' names. Raises ConfigError."""
        tools = self._part.task.tool_set.tools
        name = unfit_name(tools) if self._config.tool_format == "native" else None
        if name is not None:
            raise ConfigError(
                f"the tool name {name!r} does not fit the endpoint's `tools` parameter (letters, "
                "digits, - and _, 64 at most): use --tool-format prompt"
            )

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """Request the next turn.

        Raises TeacherError if this turn failed or was refused, EngineError if no request can
        succeed.
        """
        said = Said("", "", False)
        for attempt in range(_EMPTY_TRIES):
            body = self._body(prompt, _reseeded(params, attempt))
            label = f"{prompt.request_id}.{attempt}"
            reply = await self._client.complete(body, label, self.spent)
            said = read_reply(reply, self._config.thinking)
            if said.refusal:
                raise TeacherError(f"refused: {said.refusal[:200]}")
            if said.text:
                break
            if said.cut:
                raise TeacherError(
                    f"the reply used its {self._config.max_tokens} tokens before any text: "
                    "raise collect.endpoint.max_tokens"
                )
        if len(said.text) < _LONG_TEXT:
            return self._completion(said, params.max_tokens)
        return await asyncio.to_thread(self._completion, said, params.max_tokens)

    async def load_weights(self, manifest: WeightManifest) -> None:
        raise EngineError(f"an endpoint cannot load weights, found version {manifest.version}")

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def close(self) -> None: ...

    def _completion(self, said: Said, limit: int) -> Completion:
        ids = self._template.encode(_without(said.text, self._template.control_tokens))
        if not said.cut:
            ids.append(self._template.eos_token_id)
        kept = ids[:limit]
        whole = not said.cut and len(kept) == len(ids)
        return Completion(
            tuple(kept),
            (math.nan,) * len(kept),
            (VersionSpan(0, self.version),),
            "stop" if whole else "length",
        )

    def _body(self, prompt: Prompt, params: SamplingParams) -> JsonObject:
        config = self._config
        body: JsonObject = {
            "model": config.model,
            "max_tokens": config.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
        }
        if params.seed is not None:
            body["seed"] = params.seed
        if config.tool_format == "native":
            task = self._part.task
            asked = [Message("user", task.question), *_after_opening(prompt)]
            body["messages"] = native_messages(asked, self._instruction)
            body["tools"] = native_tools(task.tool_set.tools)
            if self._part.episode.max_calls_per_turn == 1:
                body["parallel_tool_calls"] = False
        else:
            body["messages"] = prompt_messages(prompt.messages, self._instruction)
        body |= config.extra
        return {name: value for name, value in body.items() if name not in config.omit}


def _after_opening(prompt: Prompt) -> list[Message]:
    """Return the messages from the student's first turn on."""
    roles = [message.role for message in prompt.messages]
    first = roles.index("assistant") if "assistant" in roles else len(roles)
    return list(prompt.messages[first:])


def _reseeded(params: SamplingParams, attempt: int) -> SamplingParams:
    return params if params.seed is None else replace(params, seed=params.seed + attempt)


def _without(text: str, tokens: tuple[str, ...]) -> str:
    """Remove `tokens` from `text`, also those that a removal creates."""
    while any(token in text for token in tokens):
        for token in tokens:
            text = text.replace(token, "")
    return text
