"""Qwen3-Coder: a function with one tag per parameter, as Qwen3-Coder and Qwen 3.5 write it."""

import re
from collections.abc import Sequence

from envs.tools import JsonObject
from rollout.formats.json_text import after_blanks
from rollout.formats.scanning import Calls, end_of, split_marked, spoken_before
from rollout.formats.values import written
from rollout.formats.written import TurnText, WrittenCall, malformed, unclosed

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_OPENING = re.compile(_OPEN)
_FUNCTION = re.compile(r"<function=([^<>\n]{1,256})>")
_PARAMETER = re.compile(r"<parameter=([^<>\n]{1,256})>")
_END_PARAMETER, _END_FUNCTION = "</parameter>", "</function>"
_SHAPE = (
    "<tool_call>\n<function=NAME>\n<parameter=ARGUMENT>\nVALUE\n</parameter>\n</function>\n"
    "</tool_call>"
)


class _Broken(Exception):
    """A call that is not written as it should be; raised within this module only."""


class Qwen3CoderFormat:
    """`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`.

    Values are text: without the line break after their opening and the one before their closing
    tag, they are converted to the types of the tool.
    """

    name = "qwen3_coder"
    shape = _SHAPE
    marks_answers = True
    opening = _OPENING

    def end_of_call(self, text: str, start: int) -> int:
        return end_of(_read, text, start)

    def split(self, text: str) -> TurnText:
        return split_marked(text, _OPENING, _read)

    def example(self, name: str, arguments: JsonObject) -> str:
        return self.join("", [(name, arguments)])

    def join(self, said: str, calls: Sequence[tuple[str, JsonObject]]) -> str:
        return spoken_before(said, "\n".join(_call(*call) for call in calls))


def _call(name: str, arguments: JsonObject) -> str:
    parameters = "".join(
        f"<parameter={key}>\n{written(value)}\n{_END_PARAMETER}\n"
        for key, value in arguments.items()
    )
    return f"{_OPEN}\n<function={name}>\n{parameters}{_END_FUNCTION}\n{_CLOSE}"


def _read(text: str, start: int) -> tuple[Calls, int]:
    try:
        call, end = _well_formed(text, start + len(_OPEN))
    except _Broken as broken:
        if text.find(_CLOSE, start) < 0:
            raise unclosed(_OPEN, _CLOSE) from None
        raise malformed(str(broken), _SHAPE) from None
    return [call], end


def _well_formed(text: str, start: int) -> tuple[WrittenCall, int]:
    function = _FUNCTION.match(text, after_blanks(text, start))
    if function is None:
        raise _Broken("<function=NAME> has to follow <tool_call>")
    arguments: JsonObject = {}
    at = after_blanks(text, function.end())
    while parameter := _PARAMETER.match(text, at):
        end = text.find(_END_PARAMETER, parameter.end())
        if end < 0:
            raise _Broken(f"<parameter={parameter[1]}> has no {_END_PARAMETER}")
        value = text[parameter.end() : end]
        arguments[parameter[1].strip()] = value.removeprefix("\n").removesuffix("\n")
        at = after_blanks(text, end + len(_END_PARAMETER))
    if not text.startswith(_END_FUNCTION, at):
        raise _Broken(f"expected <parameter=...> or {_END_FUNCTION} after a parameter")
    at = after_blanks(text, at + len(_END_FUNCTION))
    if not text.startswith(_CLOSE, at):
        raise _Broken(f"{_CLOSE} has to follow {_END_FUNCTION}")
    return WrittenCall(function[1].strip(), arguments, as_text=True), at + len(_CLOSE)
