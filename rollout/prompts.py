"""The words the runner says to the policy: one full wording, and a compact one for tiny models."""

import json
from collections.abc import Sequence
from typing import Literal, Protocol

from envs.errors import PolicyError
from envs.messages import Message
from envs.tasks import Task
from envs.tools import AnswerStatus, SessionPurpose, ToolAnswer, ToolSet, ToolSpec
from rollout.episode import Mode


class Prompts(Protocol):
    """Every message that is not the policy's own."""

    def opening(self, task: Task, mode: Mode, trial_calls: int) -> list[Message]: ...

    def answers(self, answers: Sequence[ToolAnswer]) -> list[Message]: ...

    def fault(self, error: PolicyError) -> Message: ...

    def trials_used_up(self) -> Message: ...

    def calls_used_up(self) -> Message: ...

    def execution_start(self) -> Message: ...

    def trial_start(self) -> Message: ...

    def expected(self, what: SessionPurpose, tools: ToolSet) -> str: ...


_FORMAT = """You may call these tools. Each line is a JSON schema:
<tools>
{tools}
</tools>
To call a tool, write a JSON object inside tags, then stop:
<tool_call>
{{"name": "tool-name", "arguments": {{"argument": "value"}}}}
</tool_call>"""

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
        lines = (
            json.dumps(
                {"type": "function", "function": tool.model_dump(mode="json")}, ensure_ascii=False
            )
            for tool in task.tool_set.tools
        )
        parts = [_FORMAT.format(tools="\n".join(lines))]
        if mode != "direct":
            parts.append(_TRIAL.format(calls=trial_calls))
        if mode == "free":
            parts.append(_FREE)
        parts.append(_ANSWER)
        first = "Begin with a trial" if mode != "direct" else "Begin with a tool call"
        question = f"{task.question}\n\n{first}, for example:\n{_example(task.tool_set)}"
        return [Message("system", "\n\n".join(parts)), Message("user", question)]

    def answers(self, answers: Sequence[ToolAnswer]) -> list[Message]:
        return [Message("tool", self._wrapped(_labelled(answer))) for answer in answers]

    def fault(self, error: PolicyError) -> Message:
        return Message("tool", self._wrapped(f"error: {error.message}"))

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
    """The shortest wording: a numbered line per tool, one word per event."""

    def opening(self, task: Task, mode: Mode, trial_calls: int) -> list[Message]:
        del trial_calls
        lines = [
            f"{number}. {tool.name}({', '.join(_arguments(tool))}): {tool.description}"
            for number, tool in enumerate(task.tool_set.tools, start=1)
        ]
        return [Message("system", "\n".join([mode, *lines])), Message("user", task.question)]

    def answers(self, answers: Sequence[ToolAnswer]) -> list[Message]:
        return [Message("tool", _labelled(answer)) for answer in answers]

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
    """Return the wording of that name; `wrap_answers` where the chat template does not mark tool
    answers.
    """
    return CompactPrompts() if wording == "compact" else HermesPrompts(wrap_answers=wrap_answers)


def _arguments(tool: ToolSpec) -> list[str]:
    properties = tool.parameters.get("properties")
    return list(properties) if isinstance(properties, dict) else []


def _labelled(answer: ToolAnswer) -> str:
    match answer.status:
        case AnswerStatus.OK:
            return answer.text
        case AnswerStatus.TIMEOUT:
            return f"error: timed out: {answer.text}"
        case _:
            return f"error: {answer.text}"


def _example(tools: ToolSet) -> str:
    """Return a call of the first tool as the policy should write it, its values left open."""
    if not tools.tools:
        return '<tool_call>\n{"name": "tool-name", "arguments": {}}\n</tool_call>'
    first = tools.tools[0]
    required = first.parameters.get("required")
    names = (
        [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    )
    call = {"name": first.name, "arguments": dict.fromkeys(names, "...")}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
