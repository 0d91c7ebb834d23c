"""Tool names of two syllables; each name belongs to exactly one split."""

from functools import cache

from envs.seeds import stable_hash
from envs.tasks import Split

SYLLABLES: tuple[str, ...] = tuple(
    consonant + vowel for consonant in "bdfkmprz" for vowel in "aeiou"
)
_VALIDATION_PERCENT = 10
_HELDOUT_PERCENT = 20


def split_of(name: str) -> Split:
    """Return the split of `name`; it depends only on the name."""
    bucket = stable_hash("catalog name", name) % 100
    if bucket < _HELDOUT_PERCENT:
        return "heldout"
    return "validation" if bucket < _HELDOUT_PERCENT + _VALIDATION_PERCENT else "train"


@cache
def names_of(split: Split) -> tuple[str, ...]:
    """Return every name of `split` in alphabetical order."""
    pairs = (first + second for first in SYLLABLES for second in SYLLABLES if first != second)
    return tuple(sorted(name for name in pairs if split_of(name) == split))
