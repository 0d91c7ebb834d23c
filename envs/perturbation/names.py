"""Perturbed names as in RoTBench: misspelt, reversed or nonsense; always valid and unused."""

import re
import string
from collections.abc import Collection, Sequence
from itertools import count
from random import Random
from typing import Literal

NameNoise = Literal["keep", "typo", "reverse", "nonsense"]

LONGEST_NAME = 64
_VALID = re.compile(rf"[A-Za-z_][A-Za-z0-9_]{{0,{LONGEST_NAME - 1}}}")
_TYPO_ATTEMPTS = 8
"""Number of misspellings to try before falling back to a nonsense name."""
_CHARACTERS_PER_TYPO = 6
"""A name gets one spelling mistake per this many characters, and at least one."""


def noisy_name(name: str, noise: NameNoise, taken: Collection[str], rng: Random) -> str:
    """Return a valid name that is not in `taken`; with `keep`, return `name` unchanged."""
    if noise == "keep":
        return name
    candidate = name[::-1] if noise == "reverse" else name
    for attempt in count():
        if noise == "typo" and attempt < _TYPO_ATTEMPTS:
            candidate = _misspelt(name, rng)
        elif noise != "reverse" or attempt:
            candidate = nonsense(rng)
        if _VALID.fullmatch(candidate) and candidate != name and candidate not in taken:
            break
    return candidate


def nonsense(rng: Random) -> str:
    """Return a name of 3 to 10 random letters."""
    return "".join(rng.choices(string.ascii_letters, k=rng.randint(3, 10)))


def new_names(
    names: Sequence[str], noises: Sequence[NameNoise], rng: Random, *, exchange: bool
) -> list[str]:
    """Return a new name for each of `names`, in order.

    The new names are distinct. An old name occurs among them only if it was kept or exchanged.
    """
    fresh: list[str] = []
    for name in _exchanged(names, rng) if exchange else names:
        noise = "nonsense" if name in fresh else rng.choice(noises)
        fresh.append(noisy_name(name, noise, {*names, *fresh}, rng))
    return fresh


def _exchanged(names: Sequence[str], rng: Random) -> list[str]:
    """Return the names permuted so that none keeps its position; a single name stays."""
    order = list(range(len(names)))
    rng.shuffle(order)  # a single cycle over all positions has no fixed point
    fresh = list(names)
    for place, following in zip(order, [*order[1:], *order[:1]], strict=True):
        fresh[place] = names[following]
    return fresh


def _misspelt(name: str, rng: Random) -> str:
    letters = list(name)
    for _ in range(max(1, len(name) // _CHARACTERS_PER_TYPO)):
        where = rng.randrange(len(letters)) if letters else 0
        match rng.choice(("insertion", "omission", "substitution")):
            case "omission" if len(letters) > 1:
                del letters[where]
            case "substitution" if letters:
                letters[where] = rng.choice(string.ascii_letters)
            case _:
                letters.insert(where, rng.choice(string.ascii_letters))
    return "".join(letters)
