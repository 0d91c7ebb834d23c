"""The runs below the given directories, and their indexes, kept fresh by one thread."""

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from cluster.dashboard.index.database import Database, Identity
from cluster.dashboard.index.run_facts import RunFacts
from cluster.dashboard.index.run_index import RunIndex, free_memory
from cluster.dashboard.problems import ApiError, not_found
from cluster.dashboard.settings import Settings
from envs.errors import TrialrunError
from rollout.store.run_layout import RunLayout

logger = logging.getLogger("trialrun.dashboard")

_DEPTH = 10
"""Folders below a root: a study is found to 4, and the runs of its cells lie 6 below it."""
_MOST_FOLDERS = 20_000
_LOOK_S = 2.0
"""How often folders are searched for new runs, in seconds."""
_IDLE_S = 300.0
"""After so many seconds without a request the index of a run is no longer refreshed."""
_MOST_OPEN = 16
_WAIT_S = 20.0
_DETAILS_AT_ONCE = 4_000


@dataclass(slots=True)
class KnownRun:
    """A run below one of the roots."""

    id: str
    name: str
    layout: RunLayout
    facts: RunFacts
    index: RunIndex | None = None
    used: float = 0.0
    error: str = ""
    index_was_busy: bool = False
    """Whether details were left to read after the last refresh."""


class Library:
    """All runs; `start` begins to refresh, `close` ends it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.cache, settings.memory_mb, settings.threads)
        self._runs: dict[str, KnownRun] = {}
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dashboard-index", daemon=True)

    def start(self) -> None:
        """Begin to refresh indexes."""
        self._thread.start()

    def close(self) -> None:
        """Stop refreshing, and close the indexes."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)
        self.database.close()

    def runs(self) -> list[KnownRun]:
        """Return the runs that are there now, by name."""
        self._look()
        with self._lock:
            return sorted(self._runs.values(), key=lambda run: run.name)

    def run(self, id: str) -> KnownRun:
        """Return a run. Raises ApiError if there is none of that id."""
        with self._lock:
            found = self._runs.get(id)
        if found is None:
            self._look(force=True)
            with self._lock:
                found = self._runs.get(id)
        if found is None:
            raise not_found(f"there is no run {id[:80]!r}", "list the runs: GET /api/v1/runs")
        return found

    def index(self, id: str) -> RunIndex:
        """Return the index of a run after its first refresh.

        Raises ApiError if there is no such run, it cannot be read, or reading takes longer.
        """
        run = self.run(id)
        index = self.open(run)
        if not index.loaded.wait(_WAIT_S) and index.failed is None:
            detail = f"the index of {run.name} is being made: {index.episodes:,} episodes so far"
            raise ApiError(503, "indexing", detail, "ask again in some seconds")
        if index.failed is not None and not index.loaded.is_set():
            fix = "see the run's files, or delete the cache folder"
            detail = f"the run cannot be read: {index.failed}"
            raise ApiError(409, "unreadable", detail, fix)
        return index

    def open(self, run: KnownRun) -> RunIndex:
        """Return the index of `run`, which is kept fresh from now on; it may not be loaded yet."""
        with self._lock:
            run.used = time.monotonic()
            if run.index is None:
                info = run.facts.info()
                identity = Identity(run.layout.root, info.run, info.created_at)
                run.index = RunIndex(run.layout, identity, self.database)
                self._close_surplus()
            index = run.index
        self._wake.set()
        return index

    def _close_surplus(self) -> None:
        opened = [run for run in self._runs.values() if run.index is not None]
        idle = [run for run in opened if time.monotonic() - run.used > _IDLE_S]
        for run in sorted(idle, key=lambda run: run.used)[: max(len(opened) - _MOST_OPEN, 0)]:
            assert run.index is not None
            run.index.close()
            run.index = None

    def look_again(self) -> None:
        """Search the directories now: a run was written."""
        self._look(force=True)

    def _look(self, *, force: bool = False) -> None:
        now = time.monotonic()
        with self._lock:
            if not force and now - self._looked < _LOOK_S:
                return
            self._looked = now
        found = dict(self._found())
        with self._lock:
            for id_, run in found.items():
                self._runs.setdefault(id_, run)
            for gone in self._runs.keys() - found.keys():
                run = self._runs.pop(gone)
                if run.index is not None:
                    run.index.close()

    def _found(self) -> Iterator[tuple[str, KnownRun]]:
        for root in self.settings.roots:
            for path in runs_at(root):
                name = path.relative_to(root).as_posix() if path != root else path.name
                id_ = run_id(path)
                layout = RunLayout(path)
                yield id_, KnownRun(id_, name, layout, RunFacts(layout))

    def _work(self) -> None:
        while not self._closing.is_set():
            busy = False
            for run in self._watched():
                if self._closing.is_set():
                    return
                busy |= self._refresh(run)
            if not busy:
                self._wake.wait(self.settings.poll_s)
                self._wake.clear()

    def _watched(self) -> list[KnownRun]:
        with self._lock:
            runs = [run for run in self._runs.values() if run.index is not None]
        now = time.monotonic()
        return [run for run in runs if now - run.used < _IDLE_S]

    def _refresh(self, run: KnownRun) -> bool:
        """Refresh one index; return whether there is more to do at once."""
        index = run.index
        if index is None:
            return False
        try:
            index.refresh()
            shared = run.facts.shared_sessions()
            more = index.read_details(_DETAILS_AT_ONCE, shared_sessions=shared)
            run.error = ""
        except (duckdb.Error, pa.ArrowException, OSError, TrialrunError, ValueError) as error:
            if str(error) != run.error:
                logger.warning("the index of %s could not be refreshed: %r", run.name, error)
            run.error = str(error)
            index.failed = error
            return False
        if not more and run.index_was_busy:
            free_memory()
        run.index_was_busy = more
        return more


def run_id(path: Path) -> str:
    """Return the name of a run in addresses: readable, and different for different paths."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(path.parts[-2:])).strip("-.") or "run"
    digest = hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()
    return f"{words[:80]}-{digest}"


def runs_at(root: Path) -> Iterator[Path]:
    """Yield the runs at `root` and below it, without following links out of it."""
    budget = [_MOST_FOLDERS]
    yield from _walk(root, _DEPTH, budget)


def _walk(folder: Path, depth: int, budget: list[int]) -> Iterator[Path]:
    if RunLayout(folder).run_json.exists():
        yield folder
    if depth == 0:
        return
    try:
        inner = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in inner:
        budget[0] -= 1
        if budget[0] < 0:
            return
        if entry.name.startswith(".") or entry.name in INSIDE_RUNS:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), depth - 1, budget)


INSIDE_RUNS = frozenset(
    {"ledger", "index", "episodes", "annotations", "metrics", "checkpoints", "requests"}
    | {"tool_traffic", "model"}
)
"""Folders of a run directory, in which no runs are looked for."""
