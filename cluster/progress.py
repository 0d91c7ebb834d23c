"""What a person sees while a command runs: phases, counters and steps on standard error.

On a terminal a counter is a bar with the time left. Elsewhere everything is a plain line, and no
silence is longer than `EVERY_S`: a heartbeat repeats what is running and how far it is.
"""

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from cluster.metrics import RL_LINE, SFT_LINE, dropped_reasons, line_of
from rollout.store.regular_files import open_regular

EVERY_S = 30.0
"""Longest silence, in seconds."""
_WAKE_EVERY_S = 1.0
_SFT_LINES = 20
"""An SFT makes thousands of steps: each twentieth of it is one line."""
_MIN_RATE = 0.1
"""Per second; a lower rate is shown per minute."""
_UNLOGGED = 64
"""Lines that are kept until there is a log."""

Clock = Callable[[], float]

logger = logging.getLogger("trialrun")


class Counter:
    """How many of something are done; made by `Progress.counter`."""

    def __init__(self, noun: str, total: int, done: int, clock: Clock) -> None:
        self.noun, self.total, self.done = noun, total, done
        self._first, self._started, self._clock = done, clock(), clock
        self._moved: Callable[[int], None] = lambda done: None

    def advance(self, count: int = 1) -> None:
        """Note that `count` more are done."""
        self.done += count
        self._moved(self.done)

    def on_advance(self, moved: Callable[[int], None]) -> None:
        """Call `moved` with the number done whenever it changes."""
        self._moved = moved

    @property
    def seconds(self) -> float:
        """Seconds since the counter was made."""
        return self._clock() - self._started

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the total is reached; None before anything is done."""
        done = self.done - self._first
        return self.seconds / done * (self.total - self.done) if done else None

    @property
    def text(self) -> str:
        """Return the state in words: `episodes 120/400, 3.1/s, about 1 min left`."""
        parts = [f"{self.noun} {self.done}/{self.total}"]
        done, seconds, left = self.done - self._first, self.seconds, self.seconds_left
        if done and seconds > 0:
            rate = done / seconds
            parts.append(f"{rate:.1f}/s" if rate >= _MIN_RATE else f"{60 * rate:.1f}/min")
        parts.append(
            f"{duration(seconds)} so far" if left is None else f"about {duration(left)} left"
        )
        return ", ".join(parts)


@dataclass(slots=True, kw_only=True)
class _Trained:
    """Totals over the RL steps of a run."""

    steps: int = 0
    without_update: int = 0
    episodes: int = 0
    dropped: int = 0


class _Screen:
    """Where the lines of a command go, which counters run, and when something was last printed."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self.console, self.clock = console, clock
        self.lock = threading.RLock()
        self.counters: list[tuple[str, Counter]] = []
        self.phase = ""
        self._phase_at = self._spoke_at = clock()
        self._bars: Bars | None = None
        self._beating = False
        self._log: TextIO | None = None
        self._unlogged: deque[str] = deque(maxlen=_UNLOGGED)
        """Lines without a log, such as that a run continues, which is known before it is open."""

    def line(self, text: str, *, style: str = "") -> None:
        """Print one line."""
        with self.lock:
            self._spoke_at = self.clock()
            self.note(text)
            styled = style and self.console.is_terminal
            self.console.print(
                f"[{style}]{escape(text)}[/]" if styled else escape(text), soft_wrap=True
            )

    def note(self, text: str) -> None:
        """Write one line to the log alone, with the time in UTC."""
        line = f"{datetime.now(UTC).strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        if self._log is None:
            self._unlogged.append(line)
        else:
            self._write(self._log, line)

    def write_to(self, log: TextIO | None) -> None:
        """Write every line to the file `log` too, and first those that had no log."""
        with self.lock:
            self._log = log
            if log is not None:
                self._write(log, "".join(self._unlogged))
                self._unlogged.clear()

    def _write(self, log: TextIO, text: str) -> None:
        # A full disk must not hide the error that says so: what has no room stays in the
        # file's buffer, and is written once there is room.
        with suppress(OSError):
            log.write(text)
            log.flush()

    def begin(self, text: str) -> None:
        """Print that a phase starts; the heartbeat names it from now on."""
        with self.lock:
            self.phase, self._phase_at = text, self.clock()
            self.line(text, style="bold")
            self._start_beating()

    def beat(self) -> None:
        """Print the state of what runs, if nothing was printed for `EVERY_S`."""
        with self.lock:
            if self._bars is not None or self.clock() - self._spoke_at < EVERY_S:
                return
            lines = [f"{prefix}{counter.text}" for prefix, counter in self.counters]
            if not lines and self.phase:
                lines = [f"{self.phase}: {duration(self.clock() - self._phase_at)} so far"]
            for text in lines:
                self.line(text)

    def add(self, prefix: str, counter: Counter) -> None:
        """Show `counter` until `remove`."""
        with self.lock:
            self.counters.append((prefix, counter))
            if self.console.is_terminal and not self.console.quiet:
                bar = self._open_bars()
                task = bar.add_task(f"{prefix}{counter.noun}", total=counter.total)
                bar.update(task, completed=counter.done)
                counter.on_advance(lambda done: bar.update(task, completed=done))
            self._start_beating()

    def remove(self, counter: Counter) -> None:
        """Show `counter` no longer."""
        with self.lock:
            self.counters = [pair for pair in self.counters if pair[1] is not counter]
            if self._bars is not None and not self.counters:
                self._bars.stop()
                self._bars = None

    def _open_bars(self) -> Bars:
        if self._bars is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bars = Bars(*columns, console=self.console, transient=True)
            self._bars.start()
        return self._bars

    def _start_beating(self) -> None:
        if not self._beating and not self.console.quiet:
            self._beating = True
            threading.Thread(target=_keep_beating, args=(weakref.ref(self),), daemon=True).start()


class _Warnings(logging.Handler):
    """Prints warnings that were logged, such as a lost worker, as lines of the command."""

    def __init__(self, screen: _Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.line(f"warning: {record.getMessage()}", style="yellow")


def _keep_beating(screen: "weakref.ref[_Screen]") -> None:
    """Let the screen beat until nobody holds it any more."""
    pause = threading.Event()
    while (held := screen()) is not None:
        held.beat()
        del held
        pause.wait(_WAKE_EVERY_S)


class Progress:
    """Prints to standard error, so that standard output stays a command's result."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        shown = console or Console(stderr=True, highlight=False, quiet=quiet)
        self._screen = _Screen(shown, clock)
        self._prefix = ""
        self._steps: Counter | None = None
        self._trained = _Trained()

    def named(self, name: str) -> "Progress":
        """Return a progress that shares this one's screen and puts `name` before its lines."""
        other = Progress(quiet=True)
        other._screen, other._prefix = self._screen, f"{self._prefix}{name}: "
        return other

    def say(self, text: str) -> None:
        """Print one line about what happens next."""
        self._screen.line(self._prefix + text, style="bold")

    def phase(self, text: str) -> None:
        """Print that a phase starts; while it lasts, a line repeats it every `EVERY_S` seconds."""
        self._screen.begin(self._prefix + text)

    def beat(self) -> None:
        """Print the state of what runs, if nothing was printed for `EVERY_S` seconds."""
        self._screen.beat()

    @contextmanager
    def logged(self, path: Path) -> Iterator[None]:
        """Append every line to the file `path` too while the block lasts, the lines before it,
        warnings of this project's logger, and the error that ends it.
        """
        screen, warnings = self._screen, _Warnings(self._screen)
        fd = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        log = os.fdopen(fd, "a", encoding="utf-8")
        screen.write_to(log)
        logger.addHandler(warnings)
        try:
            yield
        except BaseException as error:
            screen.note(f"error: {str(error) or type(error).__name__}")
            raise
        finally:
            logger.removeHandler(warnings)
            screen.write_to(None)
            with suppress(OSError):
                log.close()

    @contextmanager
    def counter(self, total: int, noun: str, done: int = 0) -> Iterator[Counter]:
        """Count `noun` up to `total`: a bar on a terminal, elsewhere a line every `EVERY_S`."""
        counter = Counter(noun, total, done, self._screen.clock)
        self._screen.add(self._prefix, counter)
        try:
            yield counter
        finally:
            self._screen.remove(counter)
        if counter.done > done:
            took = duration(counter.seconds)
            self._screen.line(f"{self._prefix}{noun} {counter.done}/{total} in {took}")

    def track(self, steps: Sequence[int]) -> Iterator[int]:
        """Go through the RL steps, and warn after the last if they trained nothing."""
        self._trained = _Trained()
        counter = Counter("steps", len(steps), 0, self._screen.clock)
        self._steps = counter
        self._screen.add(self._prefix, counter)
        try:
            for step in steps:
                yield step
                counter.advance()
        finally:
            self._screen.remove(counter)
            self._steps = None
        self._sum_up()

    def step(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Print one line about a finished step of RL."""
        parts = [line_of(metrics, RL_LINE)]
        if given := int(metrics.get("episodes", 0.0)):
            dropped = int(metrics.get("dropped", 0.0))
            reasons = ", ".join(f"{name} {n}" for name, n in dropped_reasons(metrics).items())
            parts.append(f"dropped {dropped}/{given}" + (f" ({reasons})" if reasons else ""))
        if self._steps is not None and (left := self._left_after_this(self._steps)):
            parts.append(f"about {duration(left)} left")
        self._note(metrics)
        self._numbered(step, steps, "  ".join(parts))
        if metrics.get("optimizer_steps") == 0:
            reasons = ", ".join(f"{name} {n}" for name, n in dropped_reasons(metrics).items())
            why = f" ({reasons})" if reasons else ""
            self._screen.line(
                f"{self._prefix}warning: step {step} trained nothing: no episode was left to "
                f"learn from{why}",
                style="yellow",
            )

    def sft_step(self, metrics: Mapping[str, float]) -> None:
        """Print one line about a finished step of SFT, if it completes a twentieth of all."""
        step, steps = int(metrics["step"]), int(metrics["steps"])
        self._screen.phase = f"{self._prefix}SFT, step {step}/{steps}"
        if step * _SFT_LINES // steps > (step - 1) * _SFT_LINES // steps:
            self._numbered(step, steps, line_of(metrics, SFT_LINE))

    def _numbered(self, step: int, steps: int, text: str) -> None:
        self._screen.line(f"{self._prefix}step {step:>{len(str(steps))}}/{steps}  {text}")

    @staticmethod
    def _left_after_this(steps: Counter) -> float:
        """Return the seconds that the steps after the current one will take."""
        done = steps.done + 1
        return steps.seconds / done * (steps.total - done)

    def _note(self, metrics: Mapping[str, float]) -> None:
        trained = self._trained
        trained.steps += 1
        trained.without_update += metrics.get("optimizer_steps") == 0
        trained.episodes += int(metrics.get("episodes", 0.0))
        trained.dropped += int(metrics.get("dropped", 0.0))

    def _sum_up(self) -> None:
        """Warn where steps made no update."""
        trained = self._trained
        if not trained.without_update:
            return
        steps, without = trained.steps, trained.without_update
        share = f"{trained.dropped} of {trained.episodes} episodes were dropped"
        if without < steps:
            text = f"{without} of {steps} steps trained nothing; {share}"
        else:
            text = (
                f"nothing was trained: none of {steps} steps updated the weights; {share}. The "
                "exported model is the one that training started from"
            )
        self._screen.line(f"{self._prefix}warning: {text}. {_HINT}", style="bold yellow")


_HINT = (
    "A group teaches only if its rewards differ. If all fail, run `trialrun sft` first or choose "
    "easier tasks; if all succeed, choose harder ones; raise rollouts.group_size or "
    "episode.temperature for more variety"
)

QUIET = Progress(quiet=True)
"""Prints nothing."""


def duration(seconds: float) -> str:
    """Return `seconds` in words: `45 s`, `3 min`, `1 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
