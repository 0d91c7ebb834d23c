"""The chat-completions wire: conversations as an endpoint reads them, replies as a student would
have written them.
"""

import json
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
_NOT_RUN = "not run"


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ContentPart(_Wire):
    """A piece of a message whose content is a list."""

    text: str = ""


class WireFunction(_Wire):
    """A call in the endpoint's format; arguments are JSON text, or an object from some servers."""

    name: str = ""
    arguments: str | JsonObject | None = None


class WireCall(_Wire):
    function: WireFunction = WireFunction()


class WireMessage(_Wire):
    content: str | tuple[ContentPart, ...] | None = None
    refusal: str | None = None
    tool_calls: tuple[WireCall, ...] | None = None
    reasoning_content: JsonValue = None
    reasoning: JsonValue = None


class WireChoice(_Wire):
    message: WireMessage
    finish_reason: str | None = None


class WireUsage(_Wire):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatReply(_Wire):
    """The body of a chat completion, as far as it is used."""

    choices: tuple[WireChoice, ...] = Field(min_length=1)
    usage: WireUsage | None = None


class _ListedModel(_Wire):
    id: str


class ModelList(_Wire):
    """The body of `/models`."""

    data: tuple[_ListedModel, ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """One reply, in the student's format."""

    text: str
    refusal: str
    """Why the endpoint refused to answer; empty if it answered."""
    cut: bool
    """Whether it reached its token limit."""


def read_reply(reply: ChatReply, thinking: Thinking) -> Said:
    """Return the reply's text, with native calls rewritten in the student's format."""
    choice = reply.choices[0]
    message = choice.message
    content = message.content or ""
    if not isinstance(content, str):
        content = "".join(part.text for part in content)
    spoken, thoughts = _without_thoughts(content)
    calls = [_call_text(call.function) for call in message.tool_calls or ()]
    if calls:
        spoken = _CALL.sub("", spoken)
    spoken = spoken.partition(_RESPONSE)[0].strip()
    refusal = message.refusal or ""
    if choice.finish_reason == "content_filter":
        refusal = refusal or "stopped by a content filter"
    native = message.reasoning_content or message.reasoning
    if isinstance(native, str):
        thoughts = [native, *thoughts]
    thought = _harmless("\n".join(thoughts).strip()) if thinking == "keep" else ""
    lines = [f"<think>\n{thought}\n</think>"] if thought and (spoken or calls) else []
    text = "\n".join([*lines, *([spoken] if spoken else []), *calls])
    return Said(text, refusal, choice.finish_reason == "length")


def _without_thoughts(content: str) -> tuple[str, list[str]]:
    """Split off think blocks; the template may have opened one, and one may lack its end."""
    before, closed, after = content.partition("</think>")
    if closed and "<think>" not in before:
        spoken, thoughts = _without_thoughts(after)
        return spoken, [before, *thoughts]
    return _THOUGHT.sub("", content), _THOUGHT.findall(content)


def _harmless(thought: str) -> str:
    """Return a thought without tags that could be parsed as actions."""
    return _TAG.sub(r"\1\2\3", thought)


def _call_text(function: WireFunction) -> str:
    """Write a native call in the student's format; arguments that are not JSON stay unchanged."""
    arguments = function.arguments
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return _tagged(f'{{"name": {_dump(function.name)}, "arguments": {arguments}}}')
    return _tagged(_dump({"name": function.name, "arguments": arguments or {}}))


def _tagged(call: str) -> str:
    return f"<tool_call>\n{call}\n</tool_call>"


def _dump(value: JsonValue) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("<", "\\u003c") if _TAG.search(text) else text


# The conversation


def prompt_messages(messages: Sequence[Message], instruction: str) -> list[JsonValue]:
    """Return the conversation as plain text, `instruction` added to its system message."""
    return _instructed(_plain(messages), instruction)


def native_messages(messages: Sequence[Message], instruction: str) -> list[JsonValue]:
    """Return the conversation with `tool_calls` and `tool` messages in place of text.

    The system message is `instruction` alone. A turn whose calls cannot be parsed stays text, and
    the answers to it become user messages.
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
    """Merge adjacent messages of one role, which some templates refuse; prepend `instruction`."""
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
    """Return a turn's calls by id (nine digits, as some servers require); none if one is broken."""
    calls: dict[str, JsonValue] = {}
    for index, block in enumerate(_CALL.findall(text)):
        try:
            value = json.loads(block)
        except ValueError:
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
