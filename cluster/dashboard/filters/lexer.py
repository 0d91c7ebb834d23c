"""Words of the filter language, each with its place in the text."""

import re
from dataclasses import dataclass
from typing import Literal

from cluster.dashboard.problems import ApiError, Place

Kind = Literal["name", "number", "text", "operator", "end"]

LONGEST_FILTER = 4_000
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w]))"
    r"|(?P<name>[A-Za-z_][\w]*)"
    r'|"(?P<double>(?:[^"\\]|\\.)*)"'
    r"|'(?P<single>(?:[^'\\]|\\.)*)'"
    r"|(?P<operator><=|>=|!=|!~|==|<|>|=|~|\(|\)|,|\.)",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Token:
    """A word: `text` is its value, without quotes and escapes."""

    kind: Kind
    text: str
    position: int
    length: int

    @property
    def place(self) -> Place:
        """Where it stands."""
        return Place(self.position, max(self.length, 1))


def filter_error(detail: str, fix: str, place: Place) -> ApiError:
    """Return the error of a filter that is wrong at `place`."""
    return ApiError(400, "bad-filter", detail, fix, place)


def quoted(text: str) -> str:
    """Return `text` as a filter writes it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def tokens_of(text: str) -> list[Token]:
    """Split a filter into words, with one of kind `end` last. Raises ApiError."""
    if len(text) > LONGEST_FILTER:
        detail = f"expected at most {LONGEST_FILTER} characters, found {len(text)}"
        raise filter_error(detail, "shorten the filter", Place(LONGEST_FILTER, 1))
    found: list[Token] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _unreadable(text, position)
        if match.lastgroup != "space":
            found.append(_token(match))
        position = match.end()
    return [*found, Token("end", "", len(text), 0)]


def _token(match: re.Match[str]) -> Token:
    kind, text = match.lastgroup or "", match[match.lastgroup or 0]
    length = match.end() - match.start()
    if kind in ("double", "single"):
        shown = _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), text)
        return Token("text", shown, match.start(), length)
    if kind == "number":
        return Token("number", text, match.start(), length)
    return Token("name" if kind == "name" else "operator", text, match.start(), length)


def _unreadable(text: str, position: int) -> ApiError:
    character = text[position]
    place = Place(position, 1)
    if character in "\"'":
        return filter_error("a text has no closing quote", f"add {character} at its end", place)
    instead = {"&": "and", "|": "or", "!": "not"}.get(character)
    fix = f"write {instead!r}" if instead else "put texts in quotes"
    suggested = Place(position, 1, (instead,) if instead else ())
    return filter_error(f"the character {character!r} has no meaning here", fix, suggested)
