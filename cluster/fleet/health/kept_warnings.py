"""Warnings of an actor's process, kept until the driver asks: the driver has the run's log."""

import logging
from collections import deque
from collections.abc import Sequence

_MOST = 100
"""Warnings that are kept; of more the oldest are left out, and counted."""

logger = logging.getLogger("trialrun")


class KeptWarnings(logging.Handler):
    """Keeps what this process logs as a warning, or worse, from now on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: deque[str] = deque(maxlen=_MOST)
        self._left_out = 0
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._left_out += len(self._kept) == _MOST
        self._kept.append(record.getMessage())

    def take(self) -> list[str]:
        """Return, once, what was kept since the last call."""
        taken = [self._kept.popleft() for _ in range(len(self._kept))]
        if self._left_out:
            taken.insert(0, f"{self._left_out} earlier warnings are left out")
            self._left_out = 0
        return taken


def say_for(name: str, warnings: Sequence[str]) -> None:
    """Log in this process what the process of `name` warned of."""
    for warning in warnings:
        logger.warning("%s: %s", name, warning)
