"""Hermes: a JSON object between <tool_call> tags, as Qwen 2.5 and Qwen 3 write it."""

import json
import re
from collections.abc import Sequence

from envs.tools import JsonObject
from rollout.formats.json_text import JsonFault, after_blanks, read_json, whole_json
from rollout.formats.scanning import Calls, end_of, split_marked, spoken_before
from rollout.formats.written import TurnText, malformed, named_call, unclosed

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_OPENING = re.compile(_OPEN)
_SHAPE = '<tool_call>\n{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}\n</tool_call>'


class HermesFormat:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of times.

    A call ends at the closing tag after its JSON, so the tag may stand in a string.
    """

    name = "hermes"
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
        written = [
            json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
            for name, arguments in calls
        ]
        return spoken_before(said, "\n".join(f"{_OPEN}\n{call}\n{_CLOSE}" for call in written))


def _read(text: str, start: int) -> tuple[Calls, int]:
    body = start + len(_OPEN)
    try:
        value, end = read_json(text, body)
        end = after_blanks(text, end)
    except JsonFault:
        pass
    else:
        if text.startswith(_CLOSE, end):
            return [named_call(value, _SHAPE)], end + len(_CLOSE)
    end = text.find(_CLOSE, body)
    if end < 0:
        raise unclosed(_OPEN, _CLOSE)
    raise malformed(_fault_of(text[body:end]), _SHAPE)


def _fault_of(body: str) -> str:
    """Return why the text between two tags is not one JSON value."""
    try:
        whole_json(body)
    except JsonFault as fault:
        return str(fault)
    return "the closing tag has to follow the JSON"
