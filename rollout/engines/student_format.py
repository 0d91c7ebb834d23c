"""Turns of a teacher, who reads and writes Hermes calls, in the format of the student's model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from envs.errors import PolicyError
from envs.messages import Message
from envs.tools import JsonObject, ToolSet
from rollout.chat.template import ChatTemplate
from rollout.formats.hermes import HermesFormat
from rollout.formats.turn_format import HERMES, TurnFormat
from rollout.formats.values import typed_arguments
from rollout.language import opens_thought

_HERMES = HermesFormat()
_THOUGHT = re.compile(r"\s*<think>\n?(.*?)\n?</think>\n?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class StudentFormat:
    """How the student's model writes turns, and what its prompts end with."""

    template: ChatTemplate
    format: TurnFormat

    def written(self, text: str, context: Sequence[int]) -> str:
        """Return a teacher's turn as the student would write it after the ids `context`.

        A thought, at the start between <think> tags, gets the student's own marks, and one that the
        template has opened is closed. A turn whose calls cannot be read stays as it is.
        """
        format, thought = self.format, ""
        if format.thinks and (found := _THOUGHT.match(text)):
            thought, text = found[1], text[found.end() :]
        turn = self._calls_written(text)
        opened = opens_thought(self.template, format, context)
        if opened or thought:
            return format.thought_before(thought, turn, opened=opened)
        return turn

    def read(self, messages: Sequence[Message], tools: ToolSet | None = None) -> list[Message]:
        """Return a conversation with the calls of the student's turns in the Hermes format, without
        thoughts that have other marks than <think>.

        With `tools`, arguments that the student's format writes as text get their types.
        """
        if self._is_hermes and self.format.thinking in (None, HERMES.thinking):
            return list(messages)
        return [
            replace(message, content=self._calls_read(message.content, tools))
            if message.role == "assistant"
            else message
            for message in messages
        ]

    @property
    def foreign_tokens(self) -> tuple[str, ...]:
        """Control tokens of the template that no turn contains: all but those of its own marks."""
        format = self.format
        turn = format.tools.join("", [("tool", {"argument": "value"})])
        marks = format.thought_before("", turn) if format.thinks else turn
        marks += format.tools.join("answer", [])
        return tuple(token for token in self.template.control_tokens if token not in marks)

    @property
    def _is_hermes(self) -> bool:
        return self.format.tools.name == _HERMES.name

    def _calls_written(self, text: str) -> str:
        if self._is_hermes:
            return text
        try:
            found = _HERMES.split(text)
        except PolicyError:
            return text
        calls: list[tuple[str, JsonObject]] = []
        for call in found.calls:
            if not isinstance(call.name, str) or not isinstance(call.arguments, dict):
                return text
            calls.append((call.name, call.arguments))
        return self.format.tools.join(found.said.strip(), calls)

    def _calls_read(self, text: str, tools: ToolSet | None) -> str:
        try:
            found = self.format.split(text)
        except PolicyError:
            return text
        calls: list[tuple[str, JsonObject]] = []
        for call in found.calls:
            name, arguments = call.name, call.arguments
            if not isinstance(name, str) or not isinstance(arguments, dict):
                return text
            tool = tools.find(name) if tools else None
            if tool is not None and call.as_text:
                arguments = typed_arguments(arguments, tool.parameters)
            calls.append((name, arguments))
        return _HERMES.join(found.said.strip(), calls)
