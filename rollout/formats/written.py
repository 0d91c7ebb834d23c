"""What a turn says, apart from who wrote it: spoken text and tool calls as they were written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from envs.errors import PolicyError, PolicyErrorKind
from envs.tools import JsonObject


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """One call as the policy wrote it; neither its name nor its arguments are checked yet."""

    name: JsonValue
    arguments: JsonValue
    as_text: bool = False
    """Whether arguments are text that still has to be converted to the types of the tool."""


@dataclass(frozen=True, slots=True)
class TurnText:
    """A turn without its thoughts: spoken text, which may hold tags, and calls in their order."""

    said: str
    calls: tuple[WrittenCall, ...] = ()
    open_thought: bool = False
    """Whether the turn ended inside of a thought."""


class ToolFormat(Protocol):
    """How the models of a family write tool calls."""

    @property
    def name(self) -> str:
        """Value of `model.tool_format`."""
        ...

    @property
    def shape(self) -> str:
        """How a call is written, with NAME and ARGUMENT in place of real ones."""
        ...

    @property
    def marks_answers(self) -> bool:
        """Whether tool answers stand between <tool_response> tags where no role marks them."""
        ...

    @property
    def opening(self) -> re.Pattern[str] | None:
        """Where a call may begin; None if channels, not marks, tell calls from the rest."""
        ...

    def end_of_call(self, text: str, start: int) -> int:
        """Return where the well-formed calls that begin at `start` end; -1 if they are not."""
        ...

    def split(self, text: str) -> TurnText:
        """Return what a turn says and calls.

        Raises PolicyError for a call that cannot be read, and for a tag that is not closed.
        """
        ...

    def example(self, name: str, arguments: JsonObject) -> str:
        """Return a call for an instruction, in which special tokens cannot stand."""
        ...

    def join(self, said: str, calls: Sequence[tuple[str, JsonObject]]) -> str:
        """Write a turn: spoken text, then calls of (name, arguments)."""
        ...


def malformed(reason: str, shape: str) -> PolicyError:
    """Return the error of a call whose text cannot be read."""
    return PolicyError(
        PolicyErrorKind.MALFORMED_JSON, f"tool call is not valid: {reason}; write\n{shape}"
    )


def unclosed(opening: str, closing: str) -> PolicyError:
    """Return the error of an opening without its end."""
    return PolicyError(PolicyErrorKind.UNCLOSED_TAG, f"{opening} has no {closing}")


def named_call(
    value: JsonValue, shape: str, *, key: str = "arguments", beside: frozenset[str] = frozenset()
) -> WrittenCall:
    """Return the call of a JSON object with a name and, below `key`, arguments.

    `beside` are keys that models of the format add, and that say nothing. Raises PolicyError.
    """
    if not isinstance(value, dict) or "name" not in value or set(value) - {"name", key, *beside}:
        raise PolicyError(
            PolicyErrorKind.WRONG_ARGUMENTS,
            f'a tool call is {{"name": ..., "{key}": {{...}}}} and nothing else; write\n{shape}',
        )
    return WrittenCall(value["name"], value.get(key, {}))
