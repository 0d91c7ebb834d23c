"""Parser for a turn of the policy: tool calls, an experience, an answer, or a return to trials."""

import json
import re
from dataclasses import dataclass

from pydantic import JsonValue

from envs.argument_check import check_arguments
from envs.errors import PolicyError, PolicyErrorKind
from envs.tools import JsonObject, ToolCall, ToolSet
from rollout.formats.json_text import JsonFault, check_plain
from rollout.formats.turn_format import HERMES, TurnFormat
from rollout.formats.values import typed_arguments
from rollout.formats.written import ToolFormat, WrittenCall, malformed, unclosed

_TAG = re.compile(r"<(/?)(experience|answer)>|<trial/>")


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """The actions of one turn; if there are tool calls, the runner ignores the other tags."""

    calls: tuple[ToolCall, ...] = ()
    experience: str | None = None
    answer: str | None = None
    back_to_trial: bool = False
    open_thought: bool = False
    """Whether the turn ended inside of a thought."""


def parse_turn(
    text: str,
    tool_set: ToolSet,
    max_calls: int,
    format: TurnFormat = HERMES,
    *,
    opened: bool = False,
) -> ParsedTurn:
    """Parse one completion. Raises PolicyError, and nothing else, for an invalid turn.

    Nothing in a thought is an action; `opened` says that the prompt ended inside of one. Of several
    answers or experiences the first counts.
    """
    turn = format.split(text, opened=opened)
    found = _tags(turn.said)
    calls = tuple(_call(call, tool_set, format.tools) for call in turn.calls)
    if len(calls) > max_calls:
        raise PolicyError(
            PolicyErrorKind.TOO_MANY_CALLS,
            f"{len(calls)} tool calls in one turn: at most {max_calls}",
        )
    return ParsedTurn(
        calls,
        found.get("experience"),
        found.get("answer"),
        "trial" in found,
        turn.open_thought,
    )


def _tags(said: str) -> dict[str, str]:
    """Return the first text of each tag. Raises PolicyError for one that is not closed."""
    found: dict[str, str] = {}
    opened: re.Match[str] | None = None
    for match in _TAG.finditer(said):
        if opened is not None:
            if match[1] and match[2] == opened[2]:
                found.setdefault(opened[2], said[opened.end() : match.start()].strip())
                opened = None
        elif match[0] == "<trial/>":
            found.setdefault("trial", "")
        elif not match[1]:
            opened = match
    if opened is not None:
        raise unclosed(opened[0], f"</{opened[2]}>")
    return found


def _call(call: WrittenCall, tool_set: ToolSet, format: ToolFormat) -> ToolCall:
    tool = tool_set.find(call.name) if isinstance(call.name, str) else None
    if tool is None:
        names = ", ".join(tool.name for tool in tool_set.tools)
        raise PolicyError(
            PolicyErrorKind.UNKNOWN_TOOL, f"no tool {_short(call.name)}; tools are: {names}"
        )
    arguments = call.arguments
    if not isinstance(arguments, dict):
        raise PolicyError(PolicyErrorKind.WRONG_ARGUMENTS, "arguments must be a JSON object")
    if call.as_text:
        arguments = typed_arguments(arguments, tool.parameters)
        try:
            check_plain(arguments)
        except JsonFault as fault:
            raise malformed(str(fault), format.shape) from None
    wrong = check_arguments(tool, arguments)
    if wrong is not None:
        raise PolicyError(PolicyErrorKind.WRONG_ARGUMENTS, wrong)
    return ToolCall(name=tool.name, arguments=arguments)


def _short(value: JsonValue) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def arguments_text(arguments: JsonObject) -> str:
    """Return `arguments` as JSON text, in the form that episodes record."""
    return json.dumps(arguments, ensure_ascii=False)
