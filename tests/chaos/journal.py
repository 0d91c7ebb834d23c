"""The journal of a chaos run: which fault was injected, into what, and when it was felt and over.

One JSON object a line, on the disk before the fault is injected: a driver that kills itself has
written its witness. It lies outside of the run directory, whose disk may be full.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Event = Literal["aims", "injected", "noticed", "over", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One entry; times are Unix seconds."""

    fault: int
    """Number in the schedule."""
    event: Event
    at: float
    pid: int = 0
    victim: str = ""
    """How the run calls what was hit."""
    saw: str = ""
    """The state that was observed when it was hit, and the proof that it was."""
    steps: int = 0
    """Steps that the run had recorded."""


class Journal:
    """Written by the injector, read by the test."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(
        self,
        fault: int,
        event: Event,
        *,
        pid: int = 0,
        victim: str = "",
        saw: str = "",
        steps: int = 0,
        at: float = 0.0,
    ) -> Line:
        """`at` is now where it is not given."""
        line = Line(
            fault=fault,
            event=event,
            at=at or time.time(),
            pid=pid,
            victim=victim,
            saw=saw,
            steps=steps,
        )
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return line

    def lines(self) -> list[Line]:
        if not self._path.exists():
            return []
        return [Line(**json.loads(line)) for line in self._path.read_text().splitlines()]

    def of(self, event: Event) -> dict[int, Line]:
        """Return the last line of `event` of each fault that has one."""
        return {line.fault: line for line in self.lines() if line.event == event}
