"""Parser for a turn of the policy: Hermes tool calls, an experience, an answer, or a return to
trials.
"""

import json
import re
from dataclasses import dataclass
from typing import Never

from pydantic import JsonValue

from envs.argument_check import check_arguments
from envs.errors import PolicyError, PolicyErrorKind
from envs.tools import JsonObject, ToolCall, ToolSet

MAX_DEPTH = 32
"""Maximum nesting depth of a call; deeper JSON counts as malformed."""

_TAG = re.compile(r"<(/?)(tool_call|experience|answer)>|<trial/>")


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """The actions of one turn; if there are tool calls, the runner ignores the other tags."""

    calls: tuple[ToolCall, ...] = ()
    experience: str | None = None
    answer: str | None = None
    back_to_trial: bool = False


def parse_turn(text: str, tool_set: ToolSet, max_calls: int) -> ParsedTurn:
    """Parse one completion. Raises PolicyError, and nothing else, for an invalid turn."""
    blocks = _blocks(text)
    calls = tuple(_call(body, tool_set) for tag, body in blocks if tag == "tool_call")
    if len(calls) > max_calls:
        raise PolicyError(
            PolicyErrorKind.TOO_MANY_CALLS,
            f"{len(calls)} tool calls in one turn: at most {max_calls}",
        )
    found: dict[str, str] = {}
    for tag, body in blocks:
        found.setdefault(tag, body.strip())
    return ParsedTurn(calls, found.get("experience"), found.get("answer"), "trial" in found)


def _blocks(text: str) -> list[tuple[str, str]]:
    blocks: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for match in _TAG.finditer(text):
        if opened is not None:
            if match[1] and match[2] == opened[2]:
                blocks.append((opened[2], text[opened.end() : match.start()]))
                opened = None
        elif match[0] == "<trial/>":
            blocks.append(("trial", ""))
        elif not match[1]:
            opened = match
    if opened is not None:
        raise PolicyError(PolicyErrorKind.UNCLOSED_TAG, f"<{opened[2]}> has no </{opened[2]}>")
    return blocks


def _call(body: str, tool_set: ToolSet) -> ToolCall:
    value = _json(body)
    if not isinstance(value, dict) or set(value) - {"name", "arguments"} or "name" not in value:
        raise PolicyError(
            PolicyErrorKind.WRONG_ARGUMENTS,
            'a tool call is {"name": ..., "arguments": {...}} and nothing else',
        )
    name, arguments = value["name"], value.get("arguments", {})
    tool = tool_set.find(name) if isinstance(name, str) else None
    if tool is None:
        names = ", ".join(tool.name for tool in tool_set.tools)
        raise PolicyError(
            PolicyErrorKind.UNKNOWN_TOOL, f"no tool {_short(name)}; tools are: {names}"
        )
    if not isinstance(arguments, dict):
        raise PolicyError(PolicyErrorKind.WRONG_ARGUMENTS, "arguments must be a JSON object")
    fault = check_arguments(tool, arguments)
    if fault is not None:
        raise PolicyError(PolicyErrorKind.WRONG_ARGUMENTS, fault)
    return ToolCall(name=tool.name, arguments=arguments)


def _json(body: str) -> JsonValue:
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        body.encode()
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "not plain JSON"
        raise PolicyError(
            PolicyErrorKind.MALFORMED_JSON, f"tool call is not valid JSON: {reason}"
        ) from None
    if _depth(value) > MAX_DEPTH:
        raise PolicyError(
            PolicyErrorKind.MALFORMED_JSON, f"tool call is nested deeper than {MAX_DEPTH}"
        )
    return value


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def _depth(value: JsonValue) -> int:
    level: list[JsonValue] = [value]
    depth = 0
    while level:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _short(value: JsonValue) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def arguments_text(arguments: JsonObject) -> str:
    """Return `arguments` as JSON text, in the form that episodes record."""
    return json.dumps(arguments, ensure_ascii=False)
