"""What the small files of a run say: its description, metrics, recipe, log and state.

Each file is read again only after it has changed. A file that is missing or damaged gives an
empty answer and an entry in `damage`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cluster.dashboard.models.shared import Damage
from cluster.older_metrics import read_metrics
from envs.errors import StoreError
from rollout.store.control import is_paused
from rollout.store.journal import whole_lines
from rollout.store.line_checks import LineChecks
from rollout.store.run_kind import kind_of
from rollout.store.run_layout import RunInfo, RunKind, RunLayout, read_run_info
from rollout.store.run_lock import is_written
from rollout.store.shared_files import read_bytes
from rollout.store.stored_recipe import Recipe, parse_recipe

Found = TypeVar("Found")
_Mark = tuple[int, int]
_NO_METRICS = (
    *(ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError),
    StoreError,
)


@dataclass(frozen=True, slots=True)
class Step:
    """The metrics of a step under today's names; what was not measured is left out."""

    step: int
    values: dict[str, float]


@dataclass(slots=True)
class RunFacts:
    """Reads the small files of the run at `layout`."""

    layout: RunLayout
    _kept: dict[str, tuple[_Mark, Any]] = field(default_factory=dict)
    damage: dict[str, Damage] = field(default_factory=dict)
    """What could not be read, by file."""

    def info(self) -> RunInfo:
        """Return what `run.json` says. Raises StoreError."""
        return self._cached("info", self.layout.run_json, lambda: read_run_info(self.layout))

    def kind(self) -> RunKind:
        """Return what the run is the record of."""
        try:
            return self._cached("kind", self.layout.run_json, lambda: kind_of(self.layout))
        except (StoreError, ValueError, OSError, AttributeError):
            return RunKind.UNKNOWN

    def is_written(self) -> bool:
        """Whether a process writes to the run now."""
        try:
            return is_written(self.layout)
        except OSError:
            return False

    def is_paused(self) -> bool:
        """Whether a job writes to the run and starts no episodes, on request."""
        if not self.is_written():
            return False
        try:
            return self._cached("paused", self.layout.control, lambda: is_paused(self.layout))
        except (StoreError, OSError):  # a damaged journal of requests
            return False

    def steps(self) -> list[Step]:
        """Return the metrics, one entry per step, in order; a repeated step has its last ones."""
        return self._cached("steps", self.layout.metrics, self._read_steps)

    def config_text(self) -> str:
        """Return the recipe as TOML; empty where there is none."""
        return self._cached("config", self.layout.config_toml, self._read_config)

    def config(self) -> Recipe:
        """Return the recipe; empty where it is no TOML."""
        try:
            return parse_recipe(self.config_text(), "config.toml")
        except StoreError as error:
            self._note("config.toml", str(error), "the recipe is shown as text")
            return {}

    def setting(self, section: str, key: str) -> Any:
        """Return a value of the recipe; None where it has none."""
        inner = self.config().get(section)
        return inner.get(key) if isinstance(inner, dict) else None

    def shared_sessions(self) -> bool:
        """Whether trials and execution act on one session."""
        return self.setting("episode", "trial_sessions") == "shared"

    def updated_at(self) -> float | None:
        """Return when a journal of the run last changed, in Unix seconds."""
        layout = self.layout
        paths = (layout.metrics, layout.ledger, layout.log, layout.manifest, layout.eval_json)
        times = [mark.st_mtime for path in paths if (mark := _stat(path)) is not None]
        return max(times, default=None)

    def _read_steps(self) -> list[Step]:
        found: dict[int, Step] = {}
        try:
            lines = whole_lines(self.layout.metrics).splitlines()
        except (OSError, StoreError) as error:
            self._note("metrics/metrics.jsonl", str(error), "no metrics are shown")
            return []
        checks = LineChecks(self.layout.metrics)
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(checks.plain(line))
                step = int(row.pop("step"))
                values = {k: float(v) for k, v in row.items() if v is not None}
            except _NO_METRICS:
                checks.lines = number
                where = f"metrics/metrics.jsonl:{number}"
                self._note(where, f"no metrics: {line[:80]!r}", "the line is left out")
                continue
            finite = {k: v for k, v in values.items() if math.isfinite(v)}
            found[step] = Step(step, read_metrics(finite))
        return [found[step] for step in sorted(found)]

    def _read_config(self) -> str:
        try:
            return read_bytes(self.layout.config_toml).decode("utf-8", "replace")
        except OSError:
            self._note("config.toml", "not there", "settings of the run are unknown")
            return ""

    def _note(self, where: str, what: str, fix: str) -> None:
        self.damage[where] = Damage(where=where, what=what, fix=fix)

    def _cached(self, name: str, path: Path, read: Callable[[], Found]) -> Found:
        found = _stat(path)
        mark = (found.st_mtime_ns, found.st_size) if found else (0, 0)
        kept = self._kept.get(name)
        if kept is not None and kept[0] == mark:
            return kept[1]
        value = read()
        self._kept[name] = (mark, value)
        return value


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError:
        return None
