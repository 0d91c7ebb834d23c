"""GLM: a name, then pairs of <arg_key> and <arg_value>, as GLM 4.5 to 4.7 write it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from envs.tools import JsonObject
from rollout.formats.json_text import after_blanks
from rollout.formats.scanning import Calls, end_of, split_marked, spoken_before
from rollout.formats.values import written
from rollout.formats.written import TurnText, WrittenCall, malformed, unclosed

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_KEY, _END_KEY = "<arg_key>", "</arg_key>"
_VALUE, _END_VALUE = "<arg_value>", "</arg_value>"
_OPENING = re.compile(_OPEN)
_NAME = re.compile(r"[^<>\n]{1,256}")
_SHAPE = "<tool_call>NAME\n<arg_key>ARGUMENT</arg_key>\n<arg_value>VALUE</arg_value>\n</tool_call>"


class _Broken(Exception):
    """A call that is not written as it should be; raised within this module only."""


@dataclass(frozen=True, slots=True)
class GlmFormat:
    """`<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`.

    Values are text, which is converted to the types of the tool.
    """

    lines: bool = True
    """Whether each tag is written on a line of its own, as GLM 4.5 does and 4.7 does not."""

    @property
    def name(self) -> str:
        return "glm"

    @property
    def shape(self) -> str:
        return _SHAPE if self.lines else _SHAPE.replace("\n", "")

    @property
    def marks_answers(self) -> bool:
        return True

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
        return spoken_before(said, "\n".join(self._call(*call) for call in calls))

    def _call(self, name: str, arguments: JsonObject) -> str:
        parts = [_OPEN + name]
        for key, value in arguments.items():
            parts += [f"{_KEY}{key}{_END_KEY}", f"{_VALUE}{written(value)}{_END_VALUE}"]
        return ("\n" if self.lines else "").join([*parts, _CLOSE])

    def _read(self, text: str, start: int) -> tuple[Calls, int]:
        try:
            call, end = _well_formed(text, start + len(_OPEN))
        except _Broken as broken:
            if text.find(_CLOSE, start) < 0:
                raise unclosed(_OPEN, _CLOSE) from None
            raise malformed(str(broken), self.shape) from None
        return [call], end


def _well_formed(text: str, start: int) -> tuple[WrittenCall, int]:
    name = _NAME.match(text, after_blanks(text, start))
    if name is None:
        raise _Broken("a tool's name has to follow <tool_call>")
    arguments: JsonObject = {}
    at = after_blanks(text, name.end())
    while text.startswith(_KEY, at):
        key, at = _between(text, at, _KEY, _END_KEY)
        arguments[key.strip()], at = _between(text, at, _VALUE, _END_VALUE)
    if not text.startswith(_CLOSE, at):
        raise _Broken(f"expected {_KEY} or {_CLOSE} after the name and after each value")
    return WrittenCall(name[0].strip(), arguments, as_text=True), at + len(_CLOSE)


def _between(text: str, start: int, opening: str, closing: str) -> tuple[str, int]:
    """Return the text between two tags at `start`, and the start of what follows them."""
    if not text.startswith(opening, start):
        raise _Broken(f"{opening} is missing")
    end = text.find(closing, start + len(opening))
    if end < 0:
        raise _Broken(f"{opening} has no {closing}")
    return text[start + len(opening) : end], after_blanks(text, end + len(closing))
