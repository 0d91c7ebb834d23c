"""An engine whose turns come from a chat endpoint over HTTP; used for teachers."""

import asyncio
import math
from dataclasses import dataclass, replace

from envs.errors import ConfigError, EngineError, TeacherError
from envs.messages import Message
from envs.tasks import Task
from envs.tools import JsonObject
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig, ToolFormatName
from rollout.engine import Completion, Prompt, SamplingParams, VersionSpan
from rollout.engines.openai_client import ChatClient, Spending
from rollout.engines.openai_config import EndpointConfig
from rollout.engines.openai_prompt import TeacherNotes, unfit_name
from rollout.engines.openai_wire import (
    ChatTurn,
    native_messages,
    native_tools,
    prompt_messages,
    read_reply,
)
from rollout.engines.student_format import StudentFormat
from rollout.language import format_of
from rollout.prompts import make_prompts
from rollout.weights.manifest import WeightManifest

_EMPTY_ATTEMPTS = 3
"""Requests for one turn while replies are empty; after them the turn stays empty."""
_LONG_TEXT = 4_000
"""Length in characters from which a text is tokenised in a thread, off the event loop."""


@dataclass(frozen=True, slots=True)
class TeacherTask:
    """The task that the endpoint works on, the configuration of its episode, and the student's
    `model.tool_format`.
    """

    task: Task
    episode: EpisodeConfig
    tool_format: ToolFormatName = "auto"


class OpenAIEngine:
    """Engine for one episode; the endpoint's text is tokenised with the student's tokenizer.

    Nothing is sampled here, so logprobs are NaN. The endpoint gets an instruction in addition to
    the student's messages; no token and no message of the episode contains it. Control tokens of
    the student's template (roles, end of turn) are removed from the endpoint's text. The endpoint
    reads and writes Hermes calls, or native ones; the episode has them in the student's format.
    """

    def __init__(
        self, client: ChatClient, config: EndpointConfig, template: ChatTemplate, part: TeacherTask
    ) -> None:
        self._client = client
        self._config = config
        self._template = template
        self._part = part
        self._student = StudentFormat(template, format_of(template, part.tool_format))
        self._instruction = TeacherNotes(part.episode, config.tool_format).text()
        self.spent = Spending()
        """Requests and tokens of this episode."""

    @property
    def version(self) -> int:
        return 0

    async def start(self) -> None:
        """Check that the tool names fit the endpoint's tool format. Raises ConfigError."""
        tools = self._part.task.tool_set.tools
        name = unfit_name(tools) if self._config.tool_format == "native" else None
        if name is not None:
            raise ConfigError(
                "expected a tool name for the endpoint's `tools` parameter (at most 64 letters, "
                f"digits, - and _), found {name!r}: use --tool-format prompt"
            )

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """Request the next turn.

        Raises TeacherError if this turn failed or was refused, and EngineError if no request can
        succeed.
        """
        turn = ChatTurn(text="", refusal="", cut=False)
        for attempt in range(_EMPTY_ATTEMPTS):
            body = self._body(prompt, _reseeded(params, attempt))
            label = f"{prompt.request_id}.{attempt}"
            reply = await self._client.complete(body, label, self.spent, self._tokens_of)
            turn = read_reply(reply, self._config.thinking, self._config.max_tokens)
            if turn.refusal:
                raise TeacherError(f"refused: {turn.refusal[:200]}")
            if turn.text:
                break
            if turn.cut:
                raise TeacherError(
                    f"the reply used {self._config.max_tokens} tokens without any text: "
                    "raise collect.endpoint.max_tokens"
                )
        if len(turn.text) < _LONG_TEXT:
            return self._completion(turn, prompt, params.max_tokens)
        return await asyncio.to_thread(self._completion, turn, prompt, params.max_tokens)

    async def load_weights(self, manifest: WeightManifest) -> None:
        raise EngineError(f"an endpoint cannot load weights, found version {manifest.version}")

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def close(self) -> None: ...

    def _tokens_of(self, text: str) -> int:
        return len(self._template.encode(text))

    def _completion(self, turn: ChatTurn, prompt: Prompt, limit: int) -> Completion:
        clean = _without(turn.text, self._template.control_tokens)
        text = self._student.written(clean, prompt.token_ids)
        ids = self._template.encode(text)
        if not turn.cut:
            ids.append(self._template.end_of(text))
        shortened = ids[:limit]
        complete = not turn.cut and len(shortened) == len(ids)
        return Completion(
            tuple(shortened),
            (math.nan,) * len(shortened),
            (VersionSpan(0, self.version),),
            "stop" if complete else "length",
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
            messages = self._student.read(_after_opening(prompt), task.tool_set)
            messages = [Message("user", task.question), *messages]
            body["messages"] = native_messages(messages, self._instruction)
            body["tools"] = native_tools(task.tool_set.tools)
            if self._part.episode.max_calls_per_turn == 1:
                body["parallel_tool_calls"] = False
        else:
            body["messages"] = prompt_messages(self._as_hermes(prompt), self._instruction)
        body |= config.extra
        return {name: value for name, value in body.items() if name not in config.omit}

    def _as_hermes(self, prompt: Prompt) -> list[Message]:
        """Return the conversation with an opening that spells out tools and Hermes calls."""
        episode, task = self._part.episode, self._part.task
        wording = "hermes" if episode.prompt == "template" else episode.prompt
        words = make_prompts(wording, wrap_answers=False)
        opening = words.opening(task, episode.mode, episode.trial.calls)
        rest = prompt.messages[len(opening) :]
        return [*opening, *self._student.read(rest, task.tool_set)]


def _after_opening(prompt: Prompt) -> list[Message]:
    """Return the messages after the student's opening, which ends before its first turn."""
    roles = [message.role for message in prompt.messages]
    first = roles.index("assistant") if "assistant" in roles else len(roles)
    return list(prompt.messages[first:])


def _reseeded(params: SamplingParams, attempt: int) -> SamplingParams:
    return params if params.seed is None else replace(params, seed=params.seed + attempt)


def _without(text: str, tokens: tuple[str, ...]) -> str:
    """Remove `tokens` from `text`, again for tokens that a removal has formed."""
    while any(token in text for token in tokens):
        for token in tokens:
            text = text.replace(token, "")
    return text
