"""What the training loop does now, and since when."""

import time
from collections.abc import Callable
from enum import StrEnum


class Part(StrEnum):
    """Parts of a step, in their order."""

    START = "starts"
    COLLECT = "waits for the groups"
    LEARN = "trains"
    RECORD = "writes the run directory"
    CHECKPOINT = "writes the checkpoint"
    PUBLISH = "publishes the weights"
    PUSH = "pushes the weights to the workers"

    @property
    def of_learner(self) -> bool:
        """Whether the learner's ranks do the work."""
        return self in (Part.LEARN, Part.CHECKPOINT, Part.PUBLISH)


class Activity:
    """The present part of the present step."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.part, self.step, self.since = Part.START, 0, clock()

    def enter(self, part: Part, step: int = 0) -> None:
        """Note that `part` of `step` begins; no step stands for what belongs to none."""
        self.part, self.step, self.since = part, step, self._clock()

    def describe(self) -> str:
        """Return in words what the loop does."""
        return f"{self.part} (step {self.step})" if self.step else str(self.part)
