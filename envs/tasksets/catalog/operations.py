"""The hidden operations of catalog tools: each rearranges the characters of a short string."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operation:
    """A rearrangement: the result is the text's slices `pieces`, concatenated."""

    name: str
    pieces: tuple[slice, ...]

    def __hash__(self) -> int:
        return hash(self.name)  # slices have no hash

    def apply(self, text: str) -> str:
        """Return the result of the operation for `text`."""
        return "".join(text[piece] for piece in self.pieces)

    @property
    def expression(self) -> str:
        """Python source of the operation, applied to a variable called `text`."""
        return " + ".join(f"text[{_bounds(piece)}]" for piece in self.pieces)


def _bounds(piece: slice) -> str:
    step = "" if piece.step is None else f":{piece.step}"
    start = "" if piece.start is None else piece.start
    stop = "" if piece.stop is None else piece.stop
    return f"{start}:{stop}{step}"


_ALL = slice(None)
_FIRST, _REST = slice(None, 1), slice(1, None)
_LAST, _FRONT = slice(-1, None), slice(None, -1)

OPERATIONS: tuple[Operation, ...] = (
    Operation("reverse", (slice(None, None, -1),)),
    Operation("rotate-left", (_REST, _FIRST)),
    Operation("rotate-right", (_LAST, _FRONT)),
    Operation("drop-first", (_REST,)),
    Operation("drop-last", (_FRONT,)),
    Operation("double-first", (_FIRST, _ALL)),
    Operation("double-last", (_ALL, _LAST)),
)
"""Operations of every split."""
RESERVED_OPERATIONS: tuple[Operation, ...] = (
    Operation("swap-first-two", (slice(1, 2), _FIRST, slice(2, None))),
    Operation("swap-last-two", (slice(None, -2), _LAST, slice(-2, -1))),
    Operation("drop-both-ends", (slice(1, -1),)),
    Operation("keep-both-ends", (_FIRST, _LAST)),
    Operation("duplicate", (_ALL, _ALL)),
    Operation("mirror", (_ALL, slice(None, None, -1))),
)
"""Operations that `train` never uses; each differs from all others in its result for a probe."""
PROBE = "123"
"""The value that the teacher tries if the question gives no example. Its characters all differ, so
the result shows the operation.
"""


def recognise(
    text: str, result: str, operations: Sequence[Operation] = OPERATIONS
) -> Operation | None:
    """Return the operation that turns `text` into `result`; unique if all characters differ."""
    return next((op for op in operations if op.apply(text) == result), None)


def named(name: str, operations: Sequence[Operation] = OPERATIONS) -> Operation:
    """Return the operation called `name`. Raises KeyError if there is none."""
    for operation in operations:
        if operation.name == name:
            return operation
    raise KeyError(name)
