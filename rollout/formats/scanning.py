"""The scanner of formats whose calls are marked: it finds calls outside of answers and notes."""

import re
from collections.abc import Callable

from envs.errors import PolicyError
from rollout.formats.written import TurnText, WrittenCall, unclosed

Calls = list[WrittenCall]
ReadCalls = Callable[[str, int], tuple[Calls, int]]
"""From a text and the start of an opening: the calls there, and where they end. Raises PolicyError
for what is no call.
"""

_TAG = re.compile(r"<(experience|answer)>")


def split_marked(text: str, opening: re.Pattern[str], read: ReadCalls) -> TurnText:
    """Return what a turn says and calls, in one pass.

    An experience or an answer ends at its closing tag, whatever stands in it; a call ends where its
    format says. Raises PolicyError for the first call that cannot be read, and for an unclosed tag.
    """
    said: list[str] = []
    calls: Calls = []
    at = position = 0
    tag, mark = _TAG.search(text), opening.search(text)
    while tag or mark:
        if tag and (mark is None or tag.start() < mark.start()):
            closing = f"</{tag[1]}>"
            end = text.find(closing, tag.end())
            if end < 0:
                raise unclosed(tag[0], closing)
            position = end + len(closing)
        elif mark:
            said.append(text[at : mark.start()])
            found, position = read(text, mark.start())
            calls += found
            at = position
        if tag and tag.start() < position:
            tag = _TAG.search(text, position)
        if mark and mark.start() < position:
            mark = opening.search(text, position)
    return TurnText("".join([*said, text[at:]]), tuple(calls))


def end_of(read: ReadCalls, text: str, start: int) -> int:
    """Return where the well-formed calls at `start` end; -1 if one of them is not."""
    try:
        return read(text, start)[1]
    except PolicyError:
        return -1


def spoken_before(said: str, calls: str) -> str:
    """Return a turn of spoken text and calls, each on lines of its own."""
    return f"{said}\n{calls}" if said and calls else said + calls
