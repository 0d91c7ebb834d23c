"""Notices from a thread that the event loop stands still, and names the line that holds it up."""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self

_LOOK_EVERY_S = 1.0
_FRAMES = 3
"""Innermost places of the stack that a line names."""
_SOURCES = ("task_stream.py", "task_sources.py", "tasksets")
"""Parts of paths that belong to the stream of prompts."""


class LoopWatch:
    """Says a line if nobody calls `beat` for `after_s`, again after twice the time, and so on.

    Everything of the driver happens in one loop: what blocks it stalls the run, and the watch that
    runs in the loop too.
    """

    def __init__(self, after_s: float, say: Callable[[str], None]) -> None:
        """`after_s` of 0 turns the watch off."""
        self._after_s, self._say = after_s, say
        self._loop_thread = threading.get_ident()
        self._beat_at = time.monotonic()
        self._said = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loop-watch", daemon=True)

    def beat(self) -> None:
        """Note that the loop turns."""
        self._beat_at, self._said = time.monotonic(), 0

    def __enter__(self) -> Self:
        self.beat()
        if self._after_s:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(min(_LOOK_EVERY_S, self._after_s)):
            stood_s = time.monotonic() - self._beat_at
            if stood_s >= self._after_s * 2**self._said:
                self._said += 1
                self._say(
                    f"warning: stalled: the driver's event loop has stood still for {stood_s:.0f} "
                    f"s, in {self._place()}"
                )

    def _place(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)
        stack = traceback.extract_stack(frame)
        places = [f"{found.name} ({found.filename}:{found.lineno})" for found in stack[-_FRAMES:]]
        stream = any(part in found.filename for found in stack for part in _SOURCES)
        return ("the stream of prompts: " if stream else "") + " < ".join(reversed(places))
