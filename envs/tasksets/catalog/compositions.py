"""Compositions: sequences of operations, and those that `train` never contains."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise, permutations

from envs.seeds import stable_hash
from envs.tasksets.catalog.config import CatalogNovelty
from envs.tasksets.catalog.operations import OPERATIONS, RESERVED_OPERATIONS, Operation

_LETTERS = "abcdefghij"
_EXTRA_DIGITS = 2


def value_digits(depth: int) -> int:
    """Return the number of digits in a question's value: enough to drop one in each step."""
    return depth + _EXTRA_DIGITS


def apply_all(operations: Sequence[Operation], text: str) -> str:
    """Return `text` after `operations`, applied in order."""
    for operation in operations:
        text = operation.apply(text)
    return text


@cache
def effective(operations: tuple[Operation, ...]) -> bool:
    """Whether every step and the order matter, and the result is not empty.

    Leaving out steps or changing their order must change the result; otherwise a policy that
    confuses its tools would be rewarded.
    """
    text = _LETTERS[: value_digits(len(operations))]
    full = apply_all(operations, text)
    others = (
        apply_all(part, text)
        for size in range(len(operations) + 1)
        for part in permutations(operations, size)
        if part != operations
    )
    return full != "" and full not in others


@cache
def reserved_pairs() -> frozenset[tuple[str, str]]:
    """Return the ordered pairs of known operations, by name, that `train` never composes.

    They are chosen by hash. No operation is first, or second, in more than one pair, so `train`
    still contains every operation in both positions.
    """
    pairs = [
        (first.name, second.name)
        for first, second in permutations(OPERATIONS, 2)
        if effective((first, second))
    ]
    pairs.sort(key=lambda pair: stable_hash("catalog composition", *pair))
    reserved: list[tuple[str, str]] = []
    for first, second in pairs:
        if all(first != pair[0] and second != pair[1] for pair in reserved):
            reserved.append((first, second))
    return frozenset(reserved)


@cache
def admitted(operations: tuple[Operation, ...], novelty: CatalogNovelty) -> bool:
    """Whether a task of that novelty may have `operations` as its goals, in this order.

    `names` is also the rule of `train`: known operations and no reserved pair. `operations`
    requires a reserved operation and nothing else that is new; `compositions` a reserved pair.
    """
    if not effective(operations):
        return False
    new_pair = any(
        (first.name, second.name) in reserved_pairs() for first, second in pairwise(operations)
    )
    new_operation = any(operation in RESERVED_OPERATIONS for operation in operations)
    return new_operation == (novelty == "operations") and new_pair == (novelty == "compositions")
