"""Where metrics go beside the run directory; a sink that fails or is slow holds nothing up."""

import importlib.util
import logging
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from envs.errors import ConfigError

logger = logging.getLogger("trialrun")
_CLOSE_S = 60.0
"""How long the end of a command waits for what was not sent yet."""


class Sink(Protocol):
    """Takes the metrics of one run, step after step."""

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Take the finite metrics of a step; a step that is repeated after a resume comes again."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkRun:
    """What a sink is told about the run."""

    name: str
    id: str
    """The same for every process that resumes the run, and for no other run."""
    path: Path
    config: dict[str, JsonValue]


Open = Callable[[SinkRun], Sink]


def check_installed(module: str, key: str) -> None:
    """Raise ConfigError where the package that the sink `key` needs is not installed."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"metrics.sinks has {key!r}, and its package is not installed: type pip install "
            f"'trialrun[{key}]', or leave it out of metrics.sinks"
        )


@dataclass(slots=True)
class SinkThread:
    """One sink in a thread of its own, which opens it, and drops it at its first error."""

    key: str
    open: Open
    run: SinkRun
    _waiting: "queue.Queue[tuple[int, dict[str, float]] | None]" = field(
        default_factory=queue.Queue
    )
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to open the sink."""
        self._thread = threading.Thread(target=self._work, name=f"sink-{self.key}", daemon=True)
        self._thread.start()

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over the metrics of a step; what was not measured is left out."""
        measured = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._waiting.put((step, measured))

    def close(self) -> None:
        """Wait until everything was sent, but not for long."""
        if self._thread is None:
            return
        self._waiting.put(None)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            logger.warning(
                "metrics for %s were not sent within %.0f s; metrics/ has all", self.key, _CLOSE_S
            )

    def _work(self) -> None:
        try:
            sink = self.open(self.run)
            while (row := self._waiting.get()) is not None:
                sink.record(*row)
            sink.close()
        except Exception as error:  # whatever the vendor raises must not end the run
            said = str(error) or type(error).__name__
            logger.warning("no metrics go to %s any more: %s; metrics/ has all", self.key, said)


@dataclass(frozen=True, slots=True)
class Sinks:
    """All sinks of a run."""

    threads: Sequence[SinkThread] = ()

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the metrics of a step to every sink; returns at once."""
        for thread in self.threads:
            thread.record(step, values)


NO_SINKS = Sinks()


@contextmanager
def opened(threads: Sequence[SinkThread]) -> Iterator[Sinks]:
    """Run the sinks while the block lasts."""
    for thread in threads:
        thread.start()
    try:
        yield Sinks(threads)
    finally:
        for thread in threads:
            thread.close()
