"""How many workers `trialrun scale` is to set, as its argument says it."""

import typer

from rollout.store.control import (
    DEFAULT_GROUP,
    MAX_WORKERS,
    ControlRequest,
    ScaleByRequest,
    ScaleRequest,
)


def workers_wanted(text: str) -> ScaleRequest | ScaleByRequest:
    """Read `4`, `+2`, `-1`, or `big=4` with a group. Raises typer.BadParameter for others."""
    group, named, number = text.rpartition("=")
    digits = number.removeprefix("+").removeprefix("-")
    count = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else -1
    signed = len(number) - len(digits)
    least = 0 if named and not signed else 1  # a group may have no workers
    if not least <= count <= MAX_WORKERS or signed > 1 or bool(named) != bool(group):
        raise typer.BadParameter(
            f"expected a number of workers, 1 to {MAX_WORKERS}, or a change such as +2 or -1, or "
            f"either for a group, such as big=4 or big=+1, found {text!r}"
        )
    group = group or DEFAULT_GROUP
    if not signed:
        return ScaleRequest(workers=count, group=group)
    return ScaleByRequest(change=-count if number.startswith("-") else count, group=group)


def words_of(request: ControlRequest) -> list[str]:
    """Return the arguments of a command that asks for `request`, apart from the run."""
    if not isinstance(request, ScaleRequest | ScaleByRequest):
        return []
    by = f"{request.change:+d}" if isinstance(request, ScaleByRequest) else str(request.workers)
    named = by if request.group == DEFAULT_GROUP else f"{request.group}={by}"
    return [named, "--abort"] if request.abort else [named]
