"""Limit on consecutive steps that made no update because something was not finite."""

from envs.errors import NonFiniteError


class SkippedSteps:
    """Counts consecutive steps without an update; more than `most` raise the last error.

    A step with at least one update resets the count, however many updates it skipped.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_a_row = 0

    def end_step(self, updates: int, error: NonFiniteError | None = None) -> None:
        """Count a step that made `updates`; `error` is that of its last skipped update.

        Raises `error` after more than `most` such steps; a step with nothing to do does not count.
        """
        if updates:
            self._in_a_row = 0
        elif error is not None:
            self._in_a_row += 1
            if self._in_a_row > self._most:
                raise error
