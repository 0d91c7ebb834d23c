"""Conversations as a chat template takes them: which roles it knows, and how it is called."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import takewhile
from typing import Any, Literal

from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase

from envs.errors import ConfigError
from envs.messages import Role

ToolRole = Literal["tool", "called", "called_once", "user"]
FIXED_DAY = "2024-07-26"
"""The day that a template's `strftime_now` sees: the one that Llama 3.1 names by default. So the
same seed gives the same ids on every day.
"""
DAY_OPTION = "strftime_now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How messages are given to a template; the defaults are the usual way."""

    parts: bool = False
    """Whether content is a list of parts, as templates of vision models want it."""
    system_role: bool = True
    """Otherwise the system text is the beginning of the first user turn."""
    tools: ToolRole = "tool"
    """Role of a tool's answer. `called`: the assistant message before it needs `tool_calls`, one
    per answer; `called_once`: one for all answers; `user`: answers are sent as user turns.
    """
    json_arguments: bool = False
    """Whether the arguments of `tool_calls` are JSON text instead of a table."""
    joined_users: bool = False
    """Whether user turns in a row are joined into one."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message on its way into a template; `calls` are the names of tools that it calls."""

    role: Role
    text: str
    name: str = ""
    calls: tuple[str, ...] = ()
    answer: str = ""
    """What the last call's argument says."""
    number: int = 0
    """Of a tool's answer: which call it answers."""


class Renderer:
    """Renders turns with one tokenizer's template and the options of the recipe."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, JsonValue]
    ) -> None:
        """Raises ConfigError for options that cannot be given to a template."""
        self._tokenizer = tokenizer
        given: dict[str, Any] = dict(options)
        self.day = str(given.get(DAY_OPTION, FIXED_DAY))
        given[DAY_OPTION] = _fixed_clock(self.day)
        if taken := given.keys() & _OWN:
            raise ConfigError(
                f"model.template_options: {', '.join(sorted(taken))} cannot be set, because "
                "trialrun gives it to the template itself: remove it"
            )
        self._options = given

    def render(
        self,
        form: Form,
        turns: Sequence[Turn],
        *,
        open_turn: bool,
        tools: Sequence[JsonValue] | None = None,
        day: str | None = None,
    ) -> str:
        """Return the text of a conversation; with `open_turn` up to the start of a new turn.

        Raises whatever the template raises.
        """
        options: dict[str, Any] = dict(self._options)
        if day:
            options[DAY_OPTION] = _fixed_clock(day)
        return str(
            self._tokenizer.apply_chat_template(
                [_row(form, turn) for turn in arranged(form, turns)],
                tools=list(tools) if tools else None,  # type: ignore[arg-type]
                tokenize=False,
                add_generation_prompt=open_turn,
                **options,
            )
        )


_OWN = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Names that no option may have."""


def arranged(form: Form, turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns that a template of this form is given."""
    found: list[Turn] = []
    for turn in turns:
        before = found[-1] if found else None
        if _as_user(form, turn):
            told = Turn("user", turn.text, turn.name or turn.role)
            if before is not None and before.role == "user" and before.name:
                found[-1] = replace(before, text=f"{before.text}\n{told.text}")
            else:
                found.append(told)
        else:
            found.append(turn)
    if not form.system_role:
        found = _without_system(found)
    if form.joined_users:
        found = _joined(found)
    return _with_calls(form, found) if form.tools.startswith("called") else found


def _as_user(form: Form, turn: Turn) -> bool:
    """Whether a tool's answer is sent as a user turn: also where there was no call to answer."""
    if turn.role != "tool":
        return False
    return form.tools == "user" or (form.tools != "tool" and not turn.name)


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    if len(turns) < 2 or turns[0].role != "system" or turns[1].role != "user":
        return list(turns)
    return [replace(turns[1], text=f"{turns[0].text}\n\n{turns[1].text}"), *turns[2:]]


def _joined(turns: Sequence[Turn]) -> list[Turn]:
    found: list[Turn] = []
    for turn in turns:
        if found and found[-1].role == turn.role == "user":
            found[-1] = replace(found[-1], text=f"{found[-1].text}\n\n{turn.text}")
        else:
            found.append(turn)
    return found


def _with_calls(form: Form, turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns with the calls that the template wants before tools' answers."""
    found = list(turns)
    for index, turn in enumerate(found):
        if turn.role != "assistant" or turn.calls:
            continue
        answers = list(takewhile(lambda other: other.role == "tool", found[index + 1 :]))
        if form.tools == "called":
            numbered = [replace(answer, number=number) for number, answer in enumerate(answers)]
            found[index + 1 : index + 1 + len(answers)] = numbered
        names = tuple(answer.name for answer in answers)
        found[index] = replace(turn, calls=names if form.tools == "called" else names[:1])
    return found


def _row(form: Form, turn: Turn) -> dict[str, Any]:
    row: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if form.parts:
        row["content"] = [{"type": "text", "text": turn.text}]
    if turn.calls:
        row["tool_calls"] = [_call(form, turn, index) for index in range(len(turn.calls))]
        if turn.answer:
            row["content"] = [] if form.parts else ""
    elif turn.role == "tool" and turn.name:
        row["name"] = turn.name
        if form.tools.startswith("called"):
            row["tool_call_id"] = _call_id(turn.number)
    return row


def _call(form: Form, turn: Turn, index: int) -> dict[str, Any]:
    last = index == len(turn.calls) - 1
    arguments = {"value": turn.answer if last else f"call {index}"}
    return {
        "type": "function",
        "id": _call_id(index),
        "function": {
            "name": turn.calls[index],
            "arguments": json.dumps(arguments) if form.json_arguments else arguments,
        },
    }


def _call_id(index: int) -> str:
    """Return an id as Mistral's templates want it: nine letters or digits."""
    return f"call{index:05d}"


def _fixed_clock(day: object) -> Callable[[str], str]:
    """Return what a template calls as `strftime_now`. Raises ConfigError for no date."""
    try:
        fixed = date.fromisoformat(str(day))
    except ValueError:
        raise ConfigError(
            f"model.template_options.{DAY_OPTION}: expected a date such as '{FIXED_DAY}', "
            f"found {day!r}"
        ) from None
    return fixed.strftime
