"""Noise in names as in RoTBench: misspelled, reversed or nonsense, always valid and unused."""

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
"""Number of misspellings that are tried before a nonsense name is used."""
_CHARACTERS_PER_TYPO = 6
"""Characters per spelling mistake; every name gets at least one mistake."""


def noisy_name(name: str, noise: NameNoise, taken: Collection[str], rng: Random) -> str:
    """Return a valid name that is not `taken`; `name` itself if the noise is `keep`."""
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
    """Return random letters without meaning."""
    return "".join(rng.choices(string.ascii_letters, k=rng.randint(3, 10)))


def new_names(
    names: Sequence[str], noises: Sequence[NameNoise], rng: Random, *, exchange: bool
) -> list[str]:
    """Return a new name for each: all different, and old only if unchanged or exchanged."""
    fresh: list[str] = []
    for name in _exchanged(names, rng) if exchange else names:
        noise = "nonsense" if name in fresh else rng.choice(noises)
        fresh.append(noisy_name(name, noise, {*names, *fresh}, rng))
    return fresh


def _exchanged(names: Sequence[str], rng: Random) -> list[str]:
    """Return the names in an order that moves every name; a single name stays."""
    order = list(range(len(names)))
    rng.shuffle(order)  # one cycle over all: each takes the name of the next
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
