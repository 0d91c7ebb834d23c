"""Format of the chat-completions API: conversations for an endpoint, replies for the student."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from envs.messages import Message
from envs.tools import JsonObject, ToolSpec
from rollout.engines.openai_config import Thinking

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
_TAG = re.compile(r"<(/?)(tool_call|tool_response|experience|answer|trial|think)(/?)>")
_RESPONSE = "<tool_response>"
_COMPLETE = frozenset(
    [
        "stop",
        "end_turn",
        "stop_sequence",
        "eos",
        "eos_token",
        "complete",
        "tool_calls",
        "tool_use",
        "function_call",
    ]
)
_AT_LIMIT = frozenset(["length", "max_tokens", "max_output_tokens", "max_length", "model_length"])
_BROKEN_OFF = frozenset(["error", "abort", "aborted", "cancelled", "timeout", "incomplete"])
_FILTERED = frozenset(["content_filter", "content_filtered", "safety", "recitation", "refusal"])
"""Finish reasons by their meaning, in the spellings of several APIs."""
_NAME_SUFFIX = re.compile(r"[:@].*", re.DOTALL)
_NOT_RUN = "not run"


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ContentPart(_Wire):
    """One part of a message whose content is a list."""

    text: str | None = None


class ChatFunction(_Wire):
    """A tool call in a reply; arguments are JSON text, or an object from some servers."""

    name: str | None = None
    arguments: str | JsonObject | None = None


class ChatToolCall(_Wire):
    function: ChatFunction = ChatFunction()


class ChatMessage(_Wire):
    content: str | tuple[ContentPart, ...] | None = None
    refusal: JsonValue = None
    tool_calls: tuple[ChatToolCall, ...] | None = None
    reasoning_content: JsonValue = None
    reasoning: JsonValue = None


class ChatChoice(_Wire):
    message: ChatMessage
    finish_reason: JsonValue = None

    @property
    def ending(self) -> str:
        """The finish reason in lower case; empty if there is none."""
        return self.finish_reason.lower() if isinstance(self.finish_reason, str) else ""


class ChatReply(_Wire):
    """The body of a chat completion: the fields that are used."""

    choices: tuple[ChatChoice, ...] = Field(min_length=1)
    usage: JsonValue = None
    """Endpoints fill this in many ways, so `tokens_used` reads it."""

    @property
    def said(self) -> str:
        """All text of the first choice: what the endpoint was paid for."""
        message = self.choices[0].message
        calls = [call.model_dump_json() for call in message.tool_calls or ()]
        thoughts = [t for t in (message.reasoning_content, message.reasoning) if isinstance(t, str)]
        return "\n".join([*thoughts[:1], _text_of(message), *calls])

    @property
    def failed(self) -> bool:
        """Whether the endpoint ended the reply with an error before it said anything."""
        choice = self.choices[0]
        return choice.ending in _BROKEN_OFF and not (
            _text_of(choice.message) or choice.message.tool_calls
        )


def tokens_used(reply: ChatReply, *names: str) -> int:
    """Return a number of tokens in the reply's `usage`, also one written as a float or as text.

    It has one of `names`. 0 stands for a number that is missing, null or impossible.
    """
    usage = reply.usage if isinstance(reply.usage, dict) else {}
    value = next((usage[name] for name in names if usage.get(name)), None)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0
    try:
        number = float(value)
    except ValueError:
        return 0
    return math.ceil(number) if math.isfinite(number) and number > 0 else 0


class _ListedModel(_Wire):
    id: str


def may_be_listed_as(model: str, listed: str) -> bool:
    """Whether an endpoint may list `model` as `listed`: with or without an organisation, a tag, a
    routing suffix or a date, or in another case.
    """
    mine, other = _plain_name(model), _plain_name(listed)
    return mine == other or mine.startswith(f"{other}-") or other.startswith(f"{mine}-")


def _plain_name(model: str) -> str:
    return _NAME_SUFFIX.sub("", model.rpartition("/")[2].lower())


class ModelList(_Wire):
    """The body of `/models`."""

    data: tuple[_ListedModel, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One turn of the endpoint in the student's format."""

    text: str
    refusal: str
    """Reason for a refusal; empty if the endpoint answered."""
    cut: bool
    """Whether the reply is not complete: it reached its token limit, or broke off."""


def read_reply(reply: ChatReply, thinking: Thinking, max_tokens: int = 0) -> ChatTurn:
    """Return the reply's text, with its native tool calls in the student's format.

    A reply without a known finish reason is cut if it used `max_tokens` (0 is unknown).
    """
    choice = reply.choices[0]
    message = choice.message
    spoken, thoughts = _without_thoughts(_text_of(message))
    calls = [_call_text(call.function) for call in message.tool_calls or ()]
    if calls:
        spoken = _CALL.sub("", spoken)
    spoken = spoken.partition(_RESPONSE)[0].strip()
    refusal = message.refusal if isinstance(message.refusal, str) else ""
    if choice.ending in _FILTERED:
        refusal = refusal or "stopped by a content filter"
    native = message.reasoning_content or message.reasoning
    if isinstance(native, str):
        thoughts = [native, *thoughts]
    thought = _harmless("\n".join(thoughts).strip()) if thinking == "keep" else ""
    lines = [f"<think>\n{thought}\n</think>"] if thought and (spoken or calls) else []
    text = "\n".join([*lines, *([spoken] if spoken else []), *calls])
    return ChatTurn(text, refusal, _is_cut(reply, max_tokens))


def _is_cut(reply: ChatReply, max_tokens: int) -> bool:
    ending = reply.choices[0].ending
    if ending in _COMPLETE:
        return False
    if ending in _AT_LIMIT or ending in _BROKEN_OFF:
        return True
    return 0 < max_tokens <= tokens_used(reply, "completion_tokens", "output_tokens")


def _text_of(message: ChatMessage) -> str:
    content = message.content or ""
    return content if isinstance(content, str) else "".join(part.text or "" for part in content)


def _without_thoughts(content: str) -> tuple[str, list[str]]:
    """Split <think> blocks from the text.

    The endpoint's template may have opened a block already, and a block may never be closed.
    """
    before, closed, after = content.partition("</think>")
    if closed and "<think>" not in before:
        spoken, thoughts = _without_thoughts(after)
        return spoken, [before, *thoughts]
    return _THOUGHT.sub("", content), _THOUGHT.findall(content)


def _harmless(thought: str) -> str:
    """Return reasoning without tags that the runner would parse as actions."""
    return _TAG.sub(r"\1\2\3", thought)


def _call_text(function: ChatFunction) -> str:
    """Write a native call in the student's format; arguments that are not JSON stay unchanged."""
    arguments = function.arguments
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return _tagged(f'{{"name": {_dump(function.name or "")}, "arguments": {arguments}}}')
    return _tagged(_dump({"name": function.name or "", "arguments": arguments or {}}))


def _tagged(call: str) -> str:
    return f"<tool_call>\n{call}\n</tool_call>"


def _dump(value: JsonValue) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("<", "\\u003c") if _TAG.search(text) else text


# The conversation


def prompt_messages(messages: Sequence[Message], instruction: str) -> list[JsonValue]:
    """Return the conversation as plain text, with `instruction` added to its system message."""
    return _instructed(_plain(messages), instruction)


def native_messages(messages: Sequence[Message], instruction: str) -> list[JsonValue]:
    """Return the conversation with `tool_calls` and `tool` messages instead of text.

    The system message is `instruction` alone. A turn whose calls cannot be parsed stays text, and
    the observation after it becomes a user message.
    """
    rows: list[JsonValue] = [{"role": "system", "content": instruction}]
    rows += _paired(message for message in messages if message.role != "system")
    return rows


def _plain(messages: Iterable[Message]) -> Iterator[tuple[str, str]]:
    for message in messages:
        if message.role == "assistant":
            yield "assistant", _without_thoughts(message.content)[0].strip()
        elif message.role == "tool" and _RESPONSE not in message.content:
            yield "user", f"{_RESPONSE}\n{message.content}\n</tool_response>"
        else:
            yield "user" if message.role == "tool" else message.role, message.content


def _instructed(rows: Iterable[tuple[str, str]], instruction: str) -> list[JsonValue]:
    """Add the instruction and merge adjacent messages of one role, which some templates refuse."""
    merged: list[tuple[str, str]] = []
    for role, content in rows:
        if merged and merged[-1][0] == role:
            merged[-1] = (role, f"{merged[-1][1]}\n{content}")
        else:
            merged.append((role, content))
    if not merged or merged[0][0] != "system":
        merged.insert(0, ("system", ""))
    system = f"{merged[0][1]}\n\n{instruction}".strip()
    return [{"role": "system", "content": system}, *_rows(merged[1:])]


def _rows(pairs: Iterable[tuple[str, str]]) -> Iterator[JsonValue]:
    for role, content in pairs:
        yield {"role": role, "content": content}


def _paired(messages: Iterable[Message]) -> Iterator[JsonValue]:
    waiting: list[str] = []
    turn = 0
    for message in messages:
        if message.role == "tool" and waiting:
            yield _answer(waiting.pop(0), _unwrapped(message.content))
            continue
        yield from (_answer(call, _NOT_RUN) for call in waiting)
        waiting = []
        if message.role != "assistant":
            yield {"role": "user", "content": _unwrapped(message.content)}
            continue
        text = _without_thoughts(message.content)[0].strip()
        calls = _native_calls(text, turn)
        turn += 1
        if calls:
            spoken = _CALL.sub("", text).strip()
            yield {"role": "assistant", "content": spoken, "tool_calls": list(calls.values())}
        else:
            yield {"role": "assistant", "content": text}
        waiting = list(calls)
    yield from (_answer(call, _NOT_RUN) for call in waiting)


def _native_calls(text: str, turn: int) -> dict[str, JsonValue]:
    """Return a turn's calls by id, or none if one is malformed.

    Ids have nine digits, because some servers require that.
    """
    calls: dict[str, JsonValue] = {}
    for index, block in enumerate(_CALL.findall(text)):
        try:
            value = json.loads(block)
        except (ValueError, RecursionError):
            return {}
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return {}
        function = {"name": value["name"], "arguments": _dump(value.get("arguments", {}))}
        call_id = f"{turn:05d}{index:04d}"
        calls[call_id] = {"id": call_id, "type": "function", "function": function}
    return calls


def _answer(call_id: str, content: str) -> JsonValue:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def _unwrapped(content: str) -> str:
    return content.removeprefix(f"{_RESPONSE}\n").removesuffix("\n</tool_response>")


def native_tools(tools: Iterable[ToolSpec]) -> list[JsonValue]:
    """Return the `tools` parameter of a request."""
    return [{"type": "function", "function": tool.model_dump(mode="json")} for tool in tools]
