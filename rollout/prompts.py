"""Messages from the runner to the policy: a full wording, and a compact one for tiny models."""

import json
from collections.abc import Sequence
from typing import Literal, Protocol

from pydantic import JsonValue

from envs.errors import ConfigError, PolicyError, PolicyErrorKind
from envs.example_arguments import TEXT, example_arguments
from envs.messages import Message, marked, unmarked, world
from envs.tasks import Mode, Task
from envs.tools import AnswerStatus, JsonObject, SessionPurpose, ToolAnswer, ToolSet, ToolSpec
from rollout.formats.turn_format import HERMES, TurnFormat
from rollout.formats.written import ToolFormat

Wording = Literal["hermes", "template", "compact"]
"""Values of `episode.prompt`."""


class Prompts(Protocol):
    """A wording of every message that the policy does not write itself."""

    def opening(self, task: Task, mode: Mode, trial_calls: int) -> list[Message]:
        """Return the system and user messages at the start; `trial_calls` is the trial budget."""
        ...

    def answers(self, answers: Sequence[ToolAnswer]) -> list[Message]:
        """Return one message per tool answer."""
        ...

    def fault(self, error: PolicyError) -> Message:
        """Return the message after an invalid turn."""
        ...

    def trials_used_up(self) -> Message:
        """Return the answer to a call when no trial calls remain."""
        ...

    def calls_used_up(self) -> Message:
        """Return the answer to a call when no execution calls remain."""
        ...

    def not_run(self, calls: int, asked: int, phase: SessionPurpose) -> Message:
        """Return the message about the last `calls` of `asked`, for which no budget was left."""
        ...

    def tools_changed(self, new: Sequence[ToolSpec], gone: Sequence[str]) -> Message:
        """Return the message after the tools have changed: those that are `new` or other than
        before, and the names of those that are `gone`.
        """
        ...

    def execution_start(self) -> Message:
        """Return the message at the start of the execution phase."""
        ...

    def trial_start(self) -> Message:
        """Return the message after a return to trials."""
        ...

    def expected(self, what: SessionPurpose, tools: ToolSet) -> str:
        """Return the error text for a turn without a valid action in phase `what`.

        Parts of it that come from tools are marked (`envs.messages.world`).
        """
        ...


_TOOLS = """You may call these tools. Each line is a JSON schema:
<tools>
{tools}
</tools>
"""
_HERMES_CALL = """To call a tool, write a JSON object inside tags, then stop:
<tool_call>
{"name": "tool-name", "arguments": {"argument": "value"}}
</tool_call>"""
_CALL = "To call a tool, write, with real names and values, then stop:\n{shape}"

_OWN_WORDS = frozenset(
    {
        PolicyErrorKind.NO_ACTION,
        PolicyErrorKind.TOO_LONG,
        PolicyErrorKind.UNCLOSED_TAG,
        PolicyErrorKind.TOO_MANY_CALLS,
    }
)
"""Errors in our own words, tags included; what tools say in them is marked. Others repeat what
tools or the policy wrote.
"""
_EXPERIENCE = "<experience>what you learnt</experience>"
_ANSWER = "When you know the answer, write it alone inside tags: <answer>...</answer>"

_TRIAL = """The tools are unfamiliar and their documentation may be wrong or incomplete. \
Work in two phases.
Phase 1, trial: call tools to learn what they really do; you have {calls} trial calls, \
and nothing they change lasts. End the phase by writing down what you learnt: \
<experience>...</experience>
Phase 2, execution: you are asked to go on; then solve the task with tool calls, \
correcting yourself where a call fails."""

_ABOUT = "What their provider says about the tools:\n{text}"
_CHANGED = "The tools have changed."
_NEW = "These are new or other than before; each line is a JSON schema:\n<tools>\n{tools}\n</tools>"
_GONE = "These cannot be called any more: {names}"
_LONGER = "[cut: the tool returned more than this]"
_FREE = "In phase 2 you may go back to trials by writing <trial/>."


class FullPrompts:
    """The full wording. Tools and the format of calls are spelled out for models of one format, or
    left to a chat template that renders them.
    """

    def __init__(self, format: TurnFormat, *, wrap_answers: bool, rendered: bool) -> None:
        self._format = format
        self._wrap = wrap_answers and format.tools.marks_answers
        self._rendered = rendered

    def opening(self, task: Task, mode: Mode, trial_calls: int) -> list[Message]:
        parts = [] if self._rendered else [self._tools(task.tool_set)]
        if task.tool_set.instructions:
            parts.append(_ABOUT.format(text=world(task.tool_set.instructions)))
        if mode != "direct":
            parts.append(_TRIAL.format(calls=trial_calls))
        if mode == "free":
            parts.append(_FREE)
        parts.append(_ANSWER)
        first = "Begin with a trial" if mode != "direct" else "Begin with a tool call"
        shown = f", for example:\n{_example(task.tool_set, self._format.tools)}"
        question = f"{world(task.question)}\n\n{first}{'.' if self._rendered else shown}"
        return [marked("system", "\n\n".join(parts)), marked("user", question)]

    def answers(self, answers: Sequence[ToolAnswer]) -> list[Message]:
        return [self._tool(_labelled(answer)) for answer in answers]

    def fault(self, error: PolicyError) -> Message:
        told = error.message if error.kind in _OWN_WORDS else world(error.message)
        return self._tool(f"error: {told}")

    def trials_used_up(self) -> Message:
        return self._tool("No trial calls are left. Write <experience>...</experience> now.")

    def calls_used_up(self) -> Message:
        return self._tool("No tool calls are left. Write <answer>...</answer> now.")

    def not_run(self, calls: int, asked: int, phase: SessionPurpose) -> Message:
        kind = "trial" if phase == "trial" else "tool"
        were = "call was" if calls == 1 else f"{calls} calls were"
        return self._tool(
            f"The last {were} not run: of {asked} calls, only {asked - calls} fitted into the "
            f"budget. No {kind} calls are left."
        )

    def tools_changed(self, new: Sequence[ToolSpec], gone: Sequence[str]) -> Message:
        parts = [_CHANGED]
        if new:
            parts.append(_NEW.format(tools=_lines(new)))
        if gone:
            parts.append(_GONE.format(names=world(", ".join(gone))))
        return self._tool("\n".join(parts))

    def execution_start(self) -> Message:
        return Message("user", "The trial phase is over. Now solve the task.")

    def trial_start(self) -> Message:
        return Message("user", "You are back in the trial phase.")

    def expected(self, what: SessionPurpose, tools: ToolSet) -> str:
        other = _EXPERIENCE if what == "trial" else "<answer>...</answer>"
        example = _example(tools, self._format.tools)
        if self._format.tools.name != "hermes":  # whose marks may be control tokens
            example = world(unmarked(example))
        return f"expected a tool call, for example\n{example}\nor {other}"

    def _tools(self, tool_set: ToolSet) -> str:
        format = self._format.tools
        call = _HERMES_CALL if format.name == "hermes" else _CALL.format(shape=format.shape)
        return _TOOLS.format(tools=_lines(tool_set.tools)) + call

    def _tool(self, text: str) -> Message:
        return marked("tool", f"<tool_response>\n{text}\n</tool_response>" if self._wrap else text)


class CompactPrompts:
    """A very short wording: one numbered line per tool, a few words per event."""

    def opening(self, task: Task, mode: Mode, trial_calls: int) -> list[Message]:
        del trial_calls
        lines = _numbered(task.tool_set.tools)
        if task.tool_set.instructions:
            lines.append(world(task.tool_set.instructions))
        return [marked("system", "\n".join([mode, *lines])), marked("user", world(task.question))]

    def answers(self, answers: Sequence[ToolAnswer]) -> list[Message]:
        return [marked("tool", _labelled(answer)) for answer in answers]

    def fault(self, error: PolicyError) -> Message:
        return Message("tool", f"error: {error.kind.value.replace('_', ' ')}")

    def trials_used_up(self) -> Message:
        return Message("tool", "no trials left")

    def calls_used_up(self) -> Message:
        return Message("tool", "no calls left")

    def not_run(self, calls: int, asked: int, phase: SessionPurpose) -> Message:
        return self.trials_used_up() if phase == "trial" else self.calls_used_up()

    def tools_changed(self, new: Sequence[ToolSpec], gone: Sequence[str]) -> Message:
        lines = [f"new tools: {len(new)}", *_numbered(new)] if new else []
        lines += [f"gone: {world(', '.join(gone))}"] if gone else []
        return marked("tool", "\n".join(lines))

    def execution_start(self) -> Message:
        return Message("user", "go")

    def trial_start(self) -> Message:
        return Message("user", "try")

    def expected(self, what: SessionPurpose, tools: ToolSet) -> str:
        del tools
        return what


def make_prompts(
    wording: Wording, format: TurnFormat = HERMES, *, wrap_answers: bool, rendered: bool = False
) -> Prompts:
    """Return the wording named `wording` for models that write turns in `format`.

    `wrap_answers` puts tool answers into tags; it is for chat templates that do not mark them.
    `rendered` says that the chat template lists the tools (`tools_by_template`).
    """
    if wording == "compact":
        return CompactPrompts()
    return FullPrompts(format, wrap_answers=wrap_answers, rendered=rendered)


def tools_by_template(wording: Wording, format: TurnFormat, *, renders_tools: bool) -> bool:
    """Return whether the chat template lists the tools, rather than the system message.

    It does for `template`, and for `hermes` where the model writes calls in another format that its
    template explains. Raises ConfigError for `template` with a chat template that cannot do it.
    """
    able = renders_tools and format.as_template
    if wording == "template" and not able:
        why = (
            f"writes calls in another format than model.tool_format = {format.tools.name!r}"
            if renders_tools
            else "lists no tools"
        )
        raise ConfigError(
            "expected a chat template that lists tools and explains their format with "
            f"episode.prompt = 'template', found one that {why}: set episode.prompt = 'hermes', "
            "which spells them out"
        )
    return able and (
        wording == "template" or (wording == "hermes" and format.tools.name != "hermes")
    )


def tool_schemas(tools: Sequence[ToolSpec]) -> list[JsonObject]:
    """Return tools as JSON objects in the form that chat templates expect."""
    return [{"type": "function", "function": tool.model_dump(mode="json")} for tool in tools]


def _lines(tools: Sequence[ToolSpec]) -> str:
    """Return one line of JSON for each tool, marked as text of the world."""
    return "\n".join(world(json.dumps(tool, ensure_ascii=False)) for tool in tool_schemas(tools))


def _numbered(tools: Sequence[ToolSpec]) -> list[str]:
    """Return one numbered line for each tool."""
    about = (" ".join(tool.description.split()) for tool in tools)
    return [
        f"{number}. " + world(f"{tool.name}({', '.join(_arguments(tool))}): {said}")
        for number, (tool, said) in enumerate(zip(tools, about, strict=True), start=1)
    ]


def prompt_too_long(task: str, tokens: int, max_model_len: int) -> str:
    """Return the error for a task whose opening leaves no room to answer."""
    return (
        f"task {task}: its prompt has {tokens} tokens, and model.max_model_len ({max_model_len}) "
        "leaves no room to answer: raise it, shorten the task or its tools, or leave the task out"
    )


def _arguments(tool: ToolSpec) -> list[str]:
    properties = tool.parameters.get("properties")
    return list(properties) if isinstance(properties, dict) else []


def _labelled(answer: ToolAnswer) -> str:
    text = world(answer.text)
    if answer.truncated:
        text = f"{text}\n{_LONGER}"
    match answer.status:
        case AnswerStatus.OK:
            return text
        case AnswerStatus.TIMEOUT:
            return f"error: timed out: {text}"
        case _:
            return f"error: {text}"


def _example(tools: ToolSet, format: ToolFormat) -> str:
    """Return an example call that passes the check of arguments: of the first tool that has one."""
    for tool in tools.tools:
        arguments = example_arguments(tool)
        if arguments is not None:
            marked_arguments = {world(name): _marked(value) for name, value in arguments.items()}
            return format.example(world(tool.name), marked_arguments)
    return format.example(world(tools.tools[0].name) if tools.tools else "tool-name", {})


def _marked(value: JsonValue) -> JsonValue:
    """Return a value of an example with its texts marked as text of the world."""
    if isinstance(value, str):
        return value if value == TEXT else world(value)
    if isinstance(value, list):
        return [_marked(each) for each in value]
    if isinstance(value, dict):
        return {world(name): _marked(each) for name, each in value.items()}
    return value
