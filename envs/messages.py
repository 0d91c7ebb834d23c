"""Messages of a conversation, as chat templates and policies see them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]

MARKS = "\ufdd0\ufdd1\ufdd2\ufdd3\ufdd4"
"""Noncharacters of Unicode, which no text should hold: they mark text of the world."""
_OPEN, _CLOSE, _ESCAPE = MARKS[:3]
_ESCAPED = {_OPEN: f"{_ESCAPE}a", _CLOSE: f"{_ESCAPE}b", _ESCAPE: f"{_ESCAPE}c"}
_MARK = re.compile(f"{_OPEN}|{_CLOSE}|{_ESCAPE}[abc]")


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `content` is plain text, tool calls included as the policy wrote them.

    `world` and `name` say how to encode the message. They are not recorded with it.
    """

    role: Role
    content: str
    world: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    """Start and end, in characters, of every part of `content` that comes from the world: tool
    answers, questions, documentation. No such part may become a control token.
    """
    name: str = field(default="", compare=False)
    """For a tool's answer: the tool's name, which some chat templates show."""


def world(text: str) -> str:
    """Return `text` marked as text of the world, to be put into a longer text; see `marked`."""
    return f"{_OPEN}{re.sub(f'[{_OPEN}{_CLOSE}{_ESCAPE}]', lambda m: _ESCAPED[m[0]], text)}{_CLOSE}"


def marked(role: Role, text: str) -> Message:
    """Return a message of a text that was put together from our wording and `world(...)` parts."""
    content: list[str] = []
    spans: list[tuple[int, int]] = []
    start = length = last = 0
    for mark in _MARK.finditer(text):
        between = text[last : mark.start()]
        content.append(between)
        length += len(between)
        last = mark.end()
        if mark[0] == _OPEN:
            start = length
        elif mark[0] == _CLOSE:
            spans.append((start, length))
        else:
            content.append(MARKS["abc".index(mark[0][1])])
            length += 1
    content.append(text[last:])
    return Message(role, "".join(content), tuple(spans))


def unmarked(text: str) -> str:
    """Return the plain text of a text with `world(...)` parts, for records and for people."""
    return marked("user", text).content


Reply = Callable[[Sequence[Message], int], str]
"""Maps the conversation so far and the episode's seed to the text of the next turn.

Tool calls are in the Hermes format in both, whatever the model writes that learns from them.
"""
