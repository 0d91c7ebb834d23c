"""Text of the world in a rendered prompt: it is encoded as plain text, never as control tokens.

While a template renders, every control token's text inside text of the world is replaced by a
placeholder. What is left of control tokens in the rendered text is then the template's or ours.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pydantic import JsonValue

from envs.messages import MARKS, Message

_OPEN, _CLOSE = MARKS[:2]
_PLACEHOLDER = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_NEVER = "(?!)"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rendered text; `hidden` ones are control tokens in text of the world."""

    text: str
    hidden: bool


def control_pattern(controls: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds control tokens as a tokenizer does: the longest one first."""
    texts = sorted((text for text in controls if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)) or _NEVER)


class Hiding:
    """The placeholders of one rendering."""

    def __init__(self, controls: re.Pattern[str]) -> None:
        self._finds = re.compile(f"{controls.pattern}|[{MARKS}]")
        self._hidden: list[str] = []

    @property
    def any(self) -> bool:
        """Whether anything was hidden."""
        return bool(self._hidden)

    def message(self, message: Message) -> str:
        """Return the content of a message with control tokens in its text of the world hidden.

        A control token that is partly text of the world and partly ours counts as the world's.
        """
        spans = message.world

        def replaced(found: re.Match[str]) -> str:
            theirs = any(start < found.end() and found.start() < end for start, end in spans)
            return self._hide(found[0]) if theirs or found[0] in MARKS else found[0]

        return self._finds.sub(replaced, message.content)

    def value(self, value: JsonValue) -> JsonValue:
        """Return a JSON value, all of which is text of the world, with control tokens hidden."""
        match value:
            case str():
                return self._finds.sub(lambda found: self._hide(found[0]), value)
            case list():
                return [self.value(item) for item in value]
            case dict():
                return {str(self.value(key)): self.value(item) for key, item in value.items()}
            case _:
                return value

    def pieces(self, rendered: str) -> Iterator[Piece]:
        """Yield the parts of a rendered text in order."""
        last = 0
        for found in _PLACEHOLDER.finditer(rendered):
            if found.start() > last:
                yield Piece(rendered[last : found.start()], hidden=False)
            yield Piece(self._hidden[int(found[1])], hidden=True)
            last = found.end()
        if last < len(rendered):
            yield Piece(rendered[last:], hidden=False)

    def shown(self, rendered: str) -> str:
        """Return a rendered text with everything that was hidden."""
        return "".join(piece.text for piece in self.pieces(rendered))

    def _hide(self, text: str) -> str:
        self._hidden.append(text)
        return f"{_OPEN}{len(self._hidden) - 1}{_CLOSE}"
