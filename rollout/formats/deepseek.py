"""DeepSeek: calls between special tokens, as DeepSeek V3, R1 and V3.1 write them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from envs.messages import world
from envs.tools import JsonObject
from rollout.formats.json_text import JsonFault, after_blanks, read_json
from rollout.formats.scanning import Calls, end_of, split_marked, spoken_before
from rollout.formats.written import TurnText, WrittenCall, malformed, unclosed

# The names of these tokens are written with U+FF5C and U+2581.
_BEGIN, _END = "<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>"
_CALL, _CALL_END = (
    "<\uff5ctool\u2581call\u2581begin\uff5c>",
    "<\uff5ctool\u2581call\u2581end\uff5c>",
)
_SEPARATOR = "<\uff5ctool\u2581sep\uff5c>"
_OPENING = re.compile(f"{_BEGIN}|{_CALL}")
_FENCED_NAME = re.compile(r"([^\s<]{1,256})[ \t]*\n```json[ \t]*\n")
_FENCE = "```"
_PLAIN = f'{_BEGIN}{_CALL}NAME{_SEPARATOR}{{"ARGUMENT": "VALUE"}}{_CALL_END}{_END}'
_FENCED = (
    f"{_BEGIN}{_CALL}function{_SEPARATOR}NAME\n"
    f'{_FENCE}json\n{{"ARGUMENT": "VALUE"}}\n{_FENCE}{_CALL_END}{_END}'
)


class _Broken(Exception):
    """A call that is not written as it should be; raised within this module only."""


@dataclass(frozen=True, slots=True)
class DeepseekFormat:
    """A name, a separator and a JSON object between special tokens.

    V3 and R1 write `function`, the separator, the name and a fenced block; V3.1 writes the name,
    the separator and the object. Both are read; which one is written depends on the template.
    """

    fenced: bool = False

    @property
    def name(self) -> str:
        return "deepseek"

    @property
    def shape(self) -> str:
        return _FENCED if self.fenced else _PLAIN

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
        between = "\n" if self.fenced else ""
        return spoken_before(said, _BEGIN + between.join(self._call(*c) for c in calls) + _END)

    def _call(self, name: str, arguments: JsonObject) -> str:
        body = json.dumps(arguments, ensure_ascii=False)
        if not self.fenced:
            return f"{_CALL}{name}{_SEPARATOR}{body}{_CALL_END}"
        return f"{_CALL}function{_SEPARATOR}{name}\n{_FENCE}json\n{body}\n{_FENCE}{_CALL_END}"

    def _read(self, text: str, start: int) -> tuple[Calls, int]:
        calls: Calls = []
        at = after_blanks(text, start + len(_BEGIN)) if text.startswith(_BEGIN, start) else start
        while text.startswith(_CALL, at):
            try:
                call, at = _well_formed(text, at + len(_CALL))
                calls.append(call)
            except (_Broken, JsonFault) as fault:
                if text.find(_CALL_END, at) < 0:
                    raise unclosed(world(_CALL), world(_CALL_END)) from None
                raise malformed(str(fault), self.shape) from None
            at = after_blanks(text, at)
        if not calls:
            raise malformed(f"{_CALL} has to follow {_BEGIN}", self.shape)
        return calls, at + len(_END) if text.startswith(_END, at) else at


def _well_formed(text: str, start: int) -> tuple[WrittenCall, int]:
    separator = text.find(_SEPARATOR, start, start + 320)
    if separator < 0:
        raise _Broken(f"{_SEPARATOR} is missing")
    at = separator + len(_SEPARATOR)
    name = text[start:separator].strip()
    fenced = _FENCED_NAME.match(text, at)
    if fenced:
        name, at = fenced[1], fenced.end()
    value, at = read_json(text, at)
    at = after_blanks(text, at)
    if fenced:
        if not text.startswith(_FENCE, at):
            raise _Broken(f"the fenced block has no closing {_FENCE}")
        at = after_blanks(text, at + len(_FENCE))
    if not text.startswith(_CALL_END, at):
        raise _Broken(f"{_CALL_END} has to follow the arguments")
    return WrittenCall(name, value), at + len(_CALL_END)
