"""Mistral: calls after [TOOL_CALLS], as a JSON list or as a name and a JSON object."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from envs.tools import JsonObject
from rollout.formats.json_text import JsonFault, after_blanks, read_json
from rollout.formats.scanning import Calls, end_of, split_marked, spoken_before
from rollout.formats.written import TurnText, WrittenCall, malformed, named_call

_MARK, _ARGS = "[TOOL_CALLS]", "[ARGS]"
_OPENING = re.compile(r"\[TOOL_CALLS\]")
_NAME = re.compile(r"([^\s\[\]{}<>]{1,256})(?:\[CALL_ID\][^\s\[\]{}]{0,64})?(?:\[ARGS\])?\s*(?=\{)")
_LISTED = '[TOOL_CALLS][{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}]'
_NAMED = '[TOOL_CALLS]NAME[ARGS]{"ARGUMENT": "VALUE"}'
_BESIDE = frozenset({"id", "type"})


@dataclass(frozen=True, slots=True)
class MistralFormat:
    """`[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or `[TOOL_CALLS]name[ARGS]{...}`.

    Both are read; which one is written depends on the model's chat template.
    """

    listed: bool = True
    """Whether calls are written as one list, as models before version 11 of their tokenizer do."""

    @property
    def name(self) -> str:
        return "mistral"

    @property
    def shape(self) -> str:
        return _LISTED if self.listed else _NAMED

    @property
    def marks_answers(self) -> bool:
        return False

    @property
    def opening(self) -> re.Pattern[str]:
        return _OPENING

    def end_of_call(self, text: str, start: int) -> int:
        return end_of(self._read, text, start)

    def split(self, text: str) -> TurnText:
        return split_marked(text, _OPENING, self._read)

    def example(self, name: str, arguments: JsonObject) -> str:
        return self.join("", [(name, arguments)])

    def join(self, said: str, calls: Sequence[tuple[str, JsonObject]]) -> str:
        if not calls:
            return said
        if not self.listed:
            named = (
                f"{_MARK}{name}{_ARGS}{json.dumps(arguments, ensure_ascii=False)}"
                for name, arguments in calls
            )
            return spoken_before(said, "".join(named))
        rows = [{"name": name, "arguments": arguments} for name, arguments in calls]
        return spoken_before(said, _MARK + json.dumps(rows, ensure_ascii=False))

    def _read(self, text: str, start: int) -> tuple[Calls, int]:
        at = after_blanks(text, start + len(_MARK))
        named = _NAME.match(text, at)
        try:
            value, end = read_json(text, named.end() if named else at)
        except JsonFault as fault:
            raise malformed(str(fault), self.shape) from None
        if named:
            return [WrittenCall(named[1], value)], end
        rows = value if isinstance(value, list) else [value]
        if not rows:
            raise malformed("the list is empty", self.shape)
        return [named_call(row, self.shape, beside=_BESIDE) for row in rows], end
