"""Llama 3: a JSON object with a name and parameters, as Llama 3.1 to 3.3 write it."""

import json
import re
from collections.abc import Sequence

from envs.tools import JsonObject
from rollout.formats.json_text import JsonFault, after_blanks, read_json
from rollout.formats.scanning import Calls, end_of, split_marked, spoken_before
from rollout.formats.written import TurnText, malformed, named_call

_TAG = "<|python_tag|>"
_OPENING = re.compile(
    r"<\|python_tag\|>|^[ \t]*\{(?=\s{0,64}\"(?:name|type|function|parameters|arguments)\")",
    re.MULTILINE,
)
_NEXT = re.compile(r"\s*;\s*(?=\{)")
_SHAPE = '{"name": "NAME", "parameters": {"ARGUMENT": "VALUE"}}'
_BESIDE = frozenset({"type"})


class Llama3Format:
    """`{"name": ..., "parameters": {...}}` on a line of its own, or after `<|python_tag|>`.

    Several calls are separated by semicolons or line breaks.
    """

    name = "llama3"
    shape = _SHAPE
    marks_answers = False
    opening = _OPENING

    def end_of_call(self, text: str, start: int) -> int:
        return end_of(_read, text, start)

    def split(self, text: str) -> TurnText:
        return split_marked(text, _OPENING, _read)

    def example(self, name: str, arguments: JsonObject) -> str:
        return self.join("", [(name, arguments)])

    def join(self, said: str, calls: Sequence[tuple[str, JsonObject]]) -> str:
        written = [
            json.dumps({"name": name, "parameters": arguments}, ensure_ascii=False)
            for name, arguments in calls
        ]
        return spoken_before(said, "; ".join(written))


def _read(text: str, start: int) -> tuple[Calls, int]:
    calls: Calls = []
    at = after_blanks(text, start)
    if text.startswith(_TAG, at):
        at += len(_TAG)
    while True:
        try:
            value, end = read_json(text, at)
        except JsonFault as fault:
            raise malformed(str(fault), _SHAPE) from None
        key = "arguments" if isinstance(value, dict) and "arguments" in value else "parameters"
        calls.append(named_call(value, _SHAPE, key=key, beside=_BESIDE))
        another = _NEXT.match(text, end)
        if another is None:
            return calls, end
        at = another.end()
