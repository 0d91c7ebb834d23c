"""Hidden quirks of tools, which the doc does not mention and a trial reveals."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from envs.tasksets.catalog.config import CatalogQuirk

DOCUMENTED_ARGUMENT = "x"
SWITCH_ARGUMENT, SWITCH_VALUE = "y", "on"
"""The second argument of tools with two documented arguments, and its only valid value."""
ARGUMENTS: tuple[str, ...] = ("text", "word", "item", "code")
"""Possible real names of the argument if the doc gives a wrong one."""
KEYS: tuple[str, ...] = ("gold", "blue", "green", "black", "white", "pink")
"""Values of the undocumented argument `key`."""
OFFSETS: tuple[int, ...] = (3, 6)
"""By how much, modulo ten, the digits of a result are off if the tool uses another unit. The
probe's digits are 1 to 3, so its results never look like those of another offset.
"""
OPENING = "open"
"""The text that opens a closed tool, and the tool's answer to it."""
SWAPPED, BUSY, CLOSED = "swap x y", "again", "open first"
"""Errors; each states how to repair the call."""

_DIGITS = "0123456789"
Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Quirk:
    """What a tool hides; `value` is the key, the argument's real name, or the offset."""

    kind: CatalogQuirk = "none"
    value: str = ""

    @property
    def documented(self) -> tuple[str, ...]:
        """Names of the arguments that the doc shows."""
        two = self.kind in ("pair", "order")
        return (DOCUMENTED_ARGUMENT, SWITCH_ARGUMENT) if two else (DOCUMENTED_ARGUMENT,)

    @property
    def argument(self) -> str:
        """Name of the argument that takes the text."""
        if self.kind == "argument":
            return self.value
        return SWITCH_ARGUMENT if self.kind == "order" else DOCUMENTED_ARGUMENT

    @property
    def prelude(self) -> str:
        """Python source before the function; it holds the state of a session."""
        return "_seen = []\n" if self.kind in ("busy", "closed") else ""

    @property
    def missing(self) -> str:
        """The error if the argument with the text is missing."""
        return SWAPPED if self.kind == "order" else f"use {self.argument}"

    @property
    def checks(self) -> str:
        """Python source that refuses a call; it runs before the text is read."""
        match self.kind:
            case "key":
                return _refusal(
                    f'arguments.get("key") != "{self.value}"', f"needs key={self.value}"
                )
            case "pair":
                wrong = f'arguments.get("{SWITCH_ARGUMENT}") != "{SWITCH_VALUE}"'
                return _refusal(wrong, f"needs {SWITCH_ARGUMENT}={SWITCH_VALUE}")
            case "order":
                wrong = f'arguments.get("{DOCUMENTED_ARGUMENT}") != "{SWITCH_VALUE}"'
                return _refusal(wrong, SWAPPED)
            case "busy":
                return "    _seen.append(1)\n" + _refusal("len(_seen) == 1", BUSY)
            case "closed":
                opening = f'arguments["{DOCUMENTED_ARGUMENT}"] == "{OPENING}"'
                opened = f'    if {opening}:\n        _seen.append(1)\n        return "{OPENING}"\n'
                return opened + _refusal("not _seen", CLOSED)
            case _:
                return ""

    def converted(self, expression: str) -> str:
        """Return Python source of the result in the tool's unit."""
        if self.kind != "unit":
            return expression
        there = shifted(_DIGITS, int(self.value))
        return f'({expression}).translate(str.maketrans("{_DIGITS}", "{there}"))'


def _refusal(condition: str, error: str) -> str:
    return f'    if {condition}:\n        raise ValueError("{error}")\n'


def sample_quirk(weights: Sequence[tuple[CatalogQuirk, float]], rng: Random) -> Quirk:
    """Sample a quirk: a kind by `weights`, and a value for it."""
    match kind := weighted(weights, rng):
        case "key":
            return Quirk(kind, rng.choice(KEYS))
        case "argument":
            return Quirk(kind, rng.choice(ARGUMENTS))
        case "unit":
            return Quirk(kind, str(rng.choice(OFFSETS)))
        case _:
            return Quirk(kind)


def weighted(weights: Sequence[tuple[Kind, float]], rng: Random) -> Kind:
    """Sample by `weights`, with one random number.

    Options of weight 0 do not change the result, so a new option keeps old tasks. Weights need not
    sum to 1.
    """
    share, reached = rng.random() * sum(weight for _, weight in weights), 0.0
    for kind, weight in weights:
        reached += weight
        if share < reached:
            return kind
    return next(kind for kind, weight in reversed(weights) if weight > 0)


def shifted(text: str, offset: int) -> str:
    """Return `text` with `offset` added to each digit, modulo ten; other characters stay."""
    return "".join(str((int(c) + offset) % 10) if c in _DIGITS else c for c in text)


def read_probe(result: str, probe: str) -> tuple[str, int]:
    """Split the result of a trial with `probe` into the operation's result and the unit's offset.

    Operations only rearrange the probe's digits, so the offset is the one that maps all digits of
    the result back to digits of the probe.
    """
    digits = "".join(character for character in result if character in _DIGITS)
    for offset in (0, *OFFSETS):
        if set(shifted(digits, -offset)) <= set(probe):
            return shifted(digits, -offset), offset
    return digits, 0
