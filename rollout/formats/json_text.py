"""Strict JSON inside of a completion: read from a position, or a whole text."""

import json
import math
import re
from typing import Never

from pydantic import JsonValue

MAX_DEPTH = 32
"""Maximum nesting depth of a call; deeper JSON counts as malformed."""

_BLANKS = re.compile(r"[ \t\r\n]*")


class JsonFault(ValueError):
    """Text that is not the JSON that was expected; the message says why."""


def after_blanks(text: str, start: int) -> int:
    """Return the index of the first character from `start` on that is no white space."""
    found = _BLANKS.match(text, start)
    return found.end() if found else start


def read_json(text: str, start: int) -> tuple[JsonValue, int]:
    """Return the JSON value that begins at `start`, after white space, and where it ends.

    Raises JsonFault for anything that plain JSON cannot hold: NaN, numbers beyond a double such as
    1e999, halves of a surrogate pair, and more than MAX_DEPTH levels.
    """
    try:
        value, end = _DECODER.raw_decode(text, after_blanks(text, start))
    except json.JSONDecodeError as error:
        raise JsonFault(error.msg) from None
    except RecursionError:
        raise JsonFault(f"it is nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise JsonFault(_reason(error)) from None
    check_plain(value)
    return value, end


def whole_json(text: str) -> JsonValue:
    """Return `text` as one JSON value. Raises JsonFault."""
    value, end = read_json(text, 0)
    if after_blanks(text, end) != len(text):
        raise JsonFault("there is more text after the value")
    return value


def check_plain(value: JsonValue) -> None:
    """Raise JsonFault for a value that is too deep, or whose text cannot be stored."""
    if _depth(value) > MAX_DEPTH:
        raise JsonFault(f"it is nested deeper than {MAX_DEPTH}")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        raise JsonFault("half of a surrogate pair is no text") from None


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise JsonFault(f"the number {digits[:20]} is out of range")
    return number


def _refuse_constant(name: str) -> Never:
    raise JsonFault(f"{name} is not JSON")


def _reason(error: ValueError) -> str:
    """Return our own reason; Python's, for an integer of thousands of digits, names its options."""
    return str(error) if isinstance(error, JsonFault) else "a number has too many digits"


def _depth(value: JsonValue) -> int:
    level: list[JsonValue] = [value]
    depth = 0
    while level:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)
