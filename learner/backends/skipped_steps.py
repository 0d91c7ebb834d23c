"""Steps that made no update because something was not finite: how many in a row are borne."""

from envs.errors import NonFiniteError


class SkippedSteps:
    """Counts steps in a row without an update; one more than `most` raises what stopped it.

    A step of which some updates were made counts as made, however many others were skipped.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_a_row = 0

    def end_step(self, updates: int, error: NonFiniteError | None = None) -> None:
        """Take in a step that made `updates`, `error` being that of the last it could not make.

        Raises `error` when that was one step too many; a step with nothing to do does not count.
        """
        if updates:
            self._in_a_row = 0
        elif error is not None:
            self._in_a_row += 1
            if self._in_a_row > self._most:
                raise error
