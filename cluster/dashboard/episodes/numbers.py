"""Named numbers and phases, as answers show them."""

import math
from collections.abc import Sequence

from cluster.dashboard.models.detail import Part

PHASES = ("prompt", "trial", "experience", "execution", "observation")
"""Names of the phases, by their number."""


def phase_name(number: int) -> str:
    """Return the name of a phase; of a number that no version knows, the number."""
    return PHASES[number] if 0 <= number < len(PHASES) else str(number)


def numbers_of(pairs: Sequence[tuple[str, float | None]]) -> list[Part]:
    """Return named numbers; those that are not finite are null."""
    return [
        Part(name=name, value=value if value is not None and math.isfinite(value) else None)
        for name, value in pairs
    ]
