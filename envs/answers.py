"""Answers as scorers compare them: one spelling for each character, and numbers read as numbers."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_SPELLINGS = {
    "-": "\u2010\u2011\u2012\u2013\u2212\ufe58\ufe63\uff0d",
    "'": "\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4",
    '"': "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb",
    "/": "\u2044\u2215",
    " ": "\u00a0\u2007\u2009\u202f",
}
_ONE_SPELLING = {ord(other): one for one, others in _SPELLINGS.items() for other in others}
_NUMBER = re.compile(
    r"(?:\d{1,3}(?:[ ']\d{3})+(?!\d)(?:\.\d+)?"  # 1 234.5 and 1'234.5
    r"|\d{1,3}(?:\.\d{3}){2,}(?![\d.])"  # 1.234.567
    r"|\d[\d,_]*\.?\d*|\.\d+)"
    r"(?:[eE][-+]?\d+)?"
)
_SIGN = re.compile(r"([-+])(?:[$\u20ac\u00a3\u00a5\u20b9] ?)?$")
_SIGN_LENGTH = 3
_RANGE = re.compile("[-\u2014]+ *| +[-\u2014]+ +")
"""Between two numbers: a range, a date or a difference, but not the sign of the second one."""
_FRACTION = re.compile(r" ?/ ?")
_AROUND = "$\u20ac\u00a3\u00a5\u20b9% "
"""What may stand around a number without changing its value."""


@dataclass(frozen=True, slots=True)
class _Number:
    """A number without its sign, and where it stands in the text."""

    start: int
    end: int
    value: float
    is_whole: bool
    """Whether it is written with digits only."""


def one_spelling(text: str) -> str:
    """Return `text` with composed letters (NFC), and straight quotes, plain minus signs, slashes
    and blanks in place of their typographic forms. ASCII text stays as it is.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", text).translate(_ONE_SPELLING)


def last_number(text: str) -> float | None:
    """Return the value of the last number in `text`, None if there is none.

    Digits may be grouped (`1,234`, `1 234`, `1'234`); `3/4` and `1 3/4` are fractions, in one
    character too. A range or a date, as `40-42`, is no number.
    """
    text = _readable(text)
    numbers = list(_numbers(text))
    if not numbers:
        return None
    first = len(numbers) - 1
    while first and _linked(text, numbers[first - 1], numbers[first]):
        first -= 1
    return _value_of(text, numbers[:first], numbers[first:])


def whole_number(text: str) -> float | None:
    """Return the value of `text` if it is one number and nothing else, as `last_number` reads it;
    a currency or per cent sign and a final full stop may stand beside it.
    """
    text = _readable(text).strip()
    numbers = list(_numbers(text))
    if not numbers:
        return None
    before, after = text[: numbers[0].start], text[numbers[-1].end :]
    if _SIGN.sub("", before).strip(_AROUND) or after.strip(f"{_AROUND}."):
        return None
    parts = len(numbers)
    is_mixed = parts == 3 and _is_mixed(text, *numbers)
    if parts == 1 or is_mixed or (parts == 2 and _linked(text, *numbers)):
        return last_number(text)
    return None


def _readable(text: str) -> str:
    """Return `text` in one spelling, with fractions of one character (as a quarter) spelt out."""
    if text.isascii():
        return text
    spelt = (
        f" {unicodedata.normalize('NFKC', character)}"
        if unicodedata.decomposition(character).startswith("<fraction>")
        else character
        for character in text
    )
    return one_spelling("".join(spelt))


def _numbers(text: str) -> Iterator[_Number]:
    for found in _NUMBER.finditer(text):
        digits = re.sub(r"[ ',_]", "", found.group())
        if digits.count(".") > 1:
            digits = digits.replace(".", "")
        yield _Number(found.start(), found.end(), float(digits), found.group().isdecimal())


def _linked(text: str, left: _Number, right: _Number) -> bool:
    between = text[left.end : right.start]
    return bool(_RANGE.fullmatch(between) or _FRACTION.fullmatch(between))


def _value_of(text: str, before: Sequence[_Number], linked: Sequence[_Number]) -> float | None:
    """Return the value of numbers that belong together; `before` are those to their left."""
    first = linked[0]
    if len(linked) == 1:
        return _sign(text, first) * first.value
    top, bottom = linked[0], linked[1]
    is_fraction = _FRACTION.fullmatch(text[top.end : bottom.start])
    if len(linked) > 2 or not is_fraction or not bottom.value:
        return None
    if before and _is_mixed(text, before[-1], top, bottom):
        if len(before) > 1 and _linked(text, before[-2], before[-1]):
            return None
        return _sign(text, before[-1]) * (before[-1].value + top.value / bottom.value)
    return _sign(text, top) * top.value / bottom.value


def _is_mixed(text: str, whole: _Number, top: _Number, bottom: _Number) -> bool:
    """Whether three numbers are one and a part, as `1 3/4`."""
    return (
        whole.is_whole
        and top.is_whole
        and bottom.is_whole
        and top.value < bottom.value
        and text[whole.end : top.start] == " "
        and bool(_FRACTION.fullmatch(text[top.end : bottom.start]))
    )


def _sign(text: str, number: _Number) -> float:
    found = _SIGN.search(text[max(number.start - _SIGN_LENGTH, 0) : number.start])
    return -1.0 if found and found.group(1) == "-" else 1.0
