"""Messages from the runner to the policy: a full wording, and a compact one for tiny models."""

import json
from collections.abc import Sequence
from typing import Literal, Protocol

from envs.errors import PolicyError, PolicyErrorKind
from envs.messages import Message, marked, world
from envs.tasks import Task
from envs.tools import AnswerStatus, SessionPurpose, ToolAnswer, ToolSet, ToolSpec
from rollout.episode import Mode


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


_FORMAT = """You may call these tools. Each line is a JSON schema:
<tools>
{tools}
</tools>
To call a tool, write a JSON object inside tags, then stop:
<tool_call>
{{"name": "tool-name", "arguments": {{"argument": "value"}}}}
</tool_call>"""

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

_FREE = "In phase 2 you may go back to trials by writing <trial/>."


class HermesPrompts:
    """The full wording, in the tool-call format that Hermes and Qwen models were trained on."""

    def __init__(self, *, wrap_answers: bool) -> None:
        self._wrap = wrap_answers

    def opening(self, task: Task, mode: Mode, trial_calls: int) -> list[Message]:
        described = (
            {"type": "function", "function": tool.model_dump(mode="json")}
            for tool in task.tool_set.tools
        )
        lines = (world(json.dumps(tool, ensure_ascii=False)) for tool in described)
        parts = [_FORMAT.format(tools="\n".join(lines))]
        if mode != "direct":
            parts.append(_TRIAL.format(calls=trial_calls))
        if mode == "free":
            parts.append(_FREE)
        parts.append(_ANSWER)
        first = "Begin with a trial" if mode != "direct" else "Begin with a tool call"
        question = f"{world(task.question)}\n\n{first}, for example:\n{_example(task.tool_set)}"
        return [marked("system", "\n\n".join(parts)), marked("user", question)]

    def answers(self, answers: Sequence[ToolAnswer]) -> list[Message]:
        return [marked("tool", self._wrapped(_labelled(answer))) for answer in answers]

    def fault(self, error: PolicyError) -> Message:
        told = error.message if error.kind in _OWN_WORDS else world(error.message)
        return marked("tool", self._wrapped(f"error: {told}"))

    def trials_used_up(self) -> Message:
        return Message(
            "tool",
            self._wrapped("No trial calls are left. Write <experience>...</experience> now."),
        )

    def calls_used_up(self) -> Message:
        return Message(
            "tool", self._wrapped("No tool calls are left. Write <answer>...</answer> now.")
        )

    def execution_start(self) -> Message:
        return Message("user", "The trial phase is over. Now solve the task.")

    def trial_start(self) -> Message:
        return Message("user", "You are back in the trial phase.")

    def expected(self, what: SessionPurpose, tools: ToolSet) -> str:
        other = _EXPERIENCE if what == "trial" else "<answer>...</answer>"
        return f"expected a tool call, for example\n{_example(tools)}\nor {other}"

    def _wrapped(self, text: str) -> str:
        return f"<tool_response>\n{text}\n</tool_response>" if self._wrap else text


class CompactPrompts:
    """A very short wording: one numbered line per tool, a few words per event."""

    def opening(self, task: Task, mode: Mode, trial_calls: int) -> list[Message]:
        del trial_calls
        lines = [
            f"{number}. " + world(f"{tool.name}({', '.join(_arguments(tool))}): {tool.description}")
            for number, tool in enumerate(task.tool_set.tools, start=1)
        ]
        return [marked("system", "\n".join([mode, *lines])), marked("user", world(task.question))]

    def answers(self, answers: Sequence[ToolAnswer]) -> list[Message]:
        return [marked("tool", _labelled(answer)) for answer in answers]

    def fault(self, error: PolicyError) -> Message:
        return Message("tool", f"error: {error.kind.value.replace('_', ' ')}")

    def trials_used_up(self) -> Message:
        return Message("tool", "no trials left")

    def calls_used_up(self) -> Message:
        return Message("tool", "no calls left")

    def execution_start(self) -> Message:
        return Message("user", "go")

    def trial_start(self) -> Message:
        return Message("user", "try")

    def expected(self, what: SessionPurpose, tools: ToolSet) -> str:
        del tools
        return what


def make_prompts(wording: Literal["hermes", "compact"], *, wrap_answers: bool) -> Prompts:
    """Return the wording named `wording`.

    `wrap_answers` puts tool answers into tags; it is for chat templates that do not mark them.
    """
    return CompactPrompts() if wording == "compact" else HermesPrompts(wrap_answers=wrap_answers)


def _arguments(tool: ToolSpec) -> list[str]:
    properties = tool.parameters.get("properties")
    return list(properties) if isinstance(properties, dict) else []


def _labelled(answer: ToolAnswer) -> str:
    match answer.status:
        case AnswerStatus.OK:
            return world(answer.text)
        case AnswerStatus.TIMEOUT:
            return f"error: timed out: {world(answer.text)}"
        case _:
            return f"error: {world(answer.text)}"


def _example(tools: ToolSet) -> str:
    """Return an example call of the first tool, with placeholders for its values."""
    if not tools.tools:
        return '<tool_call>\n{"name": "tool-name", "arguments": {}}\n</tool_call>'
    first = tools.tools[0]
    required = first.parameters.get("required")
    names = (
        [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    )
    call = {"name": first.name, "arguments": dict.fromkeys(names, "...")}
    return f"<tool_call>\n{world(json.dumps(call, ensure_ascii=False))}\n</tool_call>"
