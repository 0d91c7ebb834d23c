"""The run directory, as its one writing process sees it.

    run.json        description of the run              manifest.jsonl  writers and segments
    config.toml     the resolved recipe                 control.jsonl   requests and answers
    ledger/         state of every episode              index/          one narrow row per episode
    episodes/       complete episodes                   annotations/    results of the learner
    metrics/        one row per step                    checkpoints/    written by the learner
    tool_traffic/   written by recording tool servers
    requests/       waiting requests to the running job
    writer.json     the last writing process and its Ray job; log.txt what its command printed

Every file is either append-only, with one write per entry, or replaced atomically, so that a kill
at any point leaves a readable directory. A kill of the process loses nothing that was
acknowledged; a power failure may lose what was written after the last `sync`.

Callers in an event loop use `store` and `synced`. From then on a thread does all writes, in the
order of the calls, so that no disk stops the loop: what other methods add is written soon after
they return, and the error of a write is raised by what is called next (see `writes`). The lock
works between processes of one node, and between nodes as `run_lock` describes.
"""

import math
import os
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self

import pyarrow as pa

from envs.errors import StoreError
from rollout.episode import Outcome
from rollout.episode_schema import EPISODE_SCHEMA
from rollout.store.control import ControlEvent
from rollout.store.journal import Closing, Journal, make_folder, one_line, replace_file
from rollout.store.ledger import Ledger
from rollout.store.regular_files import check_folders
from rollout.store.run_layout import RunInfo, RunLayout, existing_run, read_run_info
from rollout.store.run_lock import RunLock, take_lock
from rollout.store.run_reader import RunReader
from rollout.store.segments import SegmentWriter
from rollout.store.shared_files import read_bytes
from rollout.store.writes import Writes

SEGMENT_BYTES = 64 * 2**20
"""Size in bytes from which the next episodes go to a new segment."""


class RunDirectory(Closing):
    """The writer of a run directory: from `create` or `open` to `close`, called by one thread."""

    def __init__(self, layout: RunLayout, lock: RunLock, segment_bytes: int) -> None:
        self.layout = layout
        self._lock = lock
        self._segment_bytes = segment_bytes
        self.info = read_run_info(layout)
        self._writes = Writes(layout.root, guard=lock.check)
        self.ledger = Ledger(layout.ledger, self._writes)
        self._manifest = Journal(layout.manifest)
        self._metrics = Journal(layout.metrics)
        self._control = Journal(layout.control)
        self._segment: SegmentWriter | None = None
        self._closers: list[Callable[[], None]] = []
        # The session makes the history of this directory unlike any other: a copy of it that is
        # continued elsewhere has other sessions.
        self._note({"event": "opened", "pid": os.getpid(), "session": secrets.token_hex(8)})

    @classmethod
    def create(
        cls, path: Path, config_toml: str, run: RunInfo, segment_bytes: int = SEGMENT_BYTES
    ) -> Self:
        """Create a run in a new or empty folder, or in a folder that contains only other runs.

        Raises StoreError if the folder contains anything else.
        """
        layout = RunLayout(path)
        if layout.run_json.exists():
            raise StoreError(
                f"expected a new folder, found the run {read_run_info(layout).run} in {path}: "
                "resume it, or choose another folder"
            )
        check_new_folder(path)
        make_folder(path)
        with ExitStack() as undo:
            lock = take_lock(layout)
            undo.callback(lock.release)
            for folder in layout.folders:
                make_folder(folder)
            replace_file(layout.config_toml, config_toml.encode())
            replace_file(layout.run_json, run.model_dump_json(indent=2).encode())
            directory = cls(layout, lock, segment_bytes)
            undo.pop_all()
        return directory

    @classmethod
    def open(cls, path: Path, segment_bytes: int = SEGMENT_BYTES) -> Self:
        """Open an existing run for writing.

        Raises MissingError if there is none, and StoreError if another process writes to it.
        """
        layout = existing_run(path)
        with ExitStack() as undo:
            lock = take_lock(layout)
            undo.callback(lock.release)
            # Checkpoints may lie on another disk; what is in them is checked when it is loaded.
            check_folders({*layout.folders, layout.requests} - {layout.checkpoints})
            for folder in layout.folders:  # git and some copying tools leave empty folders out
                make_folder(folder)
            directory = cls(layout, lock, segment_bytes)
            undo.pop_all()
        return directory

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.layout.root

    @property
    def lock_warning(self) -> str:
        """A line about a file system without locks; empty where there are locks."""
        if self._lock.holder is None:
            return ""
        return (
            f"the file system of {self.path} has no locks (flock) that surely hold between nodes: "
            f"{self._lock.holder.name} in it names the writing process, and is touched while that "
            "lives"
        )

    def append(self, batch: pa.RecordBatch) -> None:
        """Store finished episodes; after this returns, a kill of the process cannot lose them.

        Raises StoreError, and stores none of them, if the write fails or the batch is not in
        EPISODE_SCHEMA.
        """
        _check_schema(batch)
        self._writes.now(partial(self._append, batch))

    async def store(self, batch: pa.RecordBatch) -> None:
        """Store as `append` does, without holding up the event loop.

        Raises StoreError also for an earlier write that failed, after which nothing more is
        stored, and DeadlineError if the disk hangs.
        """
        _check_schema(batch)
        await self._writes.carry_out(partial(self._append, batch))

    def _append(self, batch: pa.RecordBatch) -> None:
        if len(batch) == 0:
            return
        if self._segment is None or self._segment.nbytes >= self._segment_bytes:
            self._segment = self._next_segment()
        self._segment.append(batch)

    def annotate(self, step: int, table: pa.Table) -> None:
        """Store the learner's results of `step`; a step that is trained again replaces them."""
        self._writes.add(partial(_write_table, self.layout.annotations(step), table))

    def record_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of `step`; numbers that are not finite are stored as null."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line, what = one_line({"step": step, **row}), f"the metrics of step {step}"
        self._writes.add(partial(self._metrics.append, [line], what))

    def record_control(self, event: ControlEvent) -> None:
        """Record a request to the running job, or the job's answer."""
        line, what = event.model_dump_json(), f"the control event of {event.actor}"
        self._writes.add(partial(self._control.append, [line], what))
        self._writes.add(self._control.sync)  # or a requester on another node sees it much later

    def recover(self, step: int) -> None:
        """Return to the checkpoint of `step` (-1: none), and make the ledger agree with the store.

        Afterwards `ledger.ready_groups()` are to be trained, and `ledger.open_leases()` to be
        leased again.
        """
        self._writes.flush()
        self.ledger.roll_back(step)
        stored: dict[str, dict[int, bool]] = defaultdict(dict)
        for row in RunReader(self.path).episodes():
            stored[row.episode][row.attempt] = Outcome(row.outcome).counts
        self.ledger.reconcile(stored)
        self._note({"event": "recovered", "step": step})

    def reconfigure(self, config_toml: str, step: int) -> None:
        """Use another recipe after `step`; the recipe of earlier steps is kept in its own file."""
        until = self.layout.config_until(step)
        if step > 0 and not until.exists():
            replace_file(until, read_bytes(self.layout.config_toml))
        replace_file(self.layout.config_toml, config_toml.encode())
        self._note({"event": "reconfigured", "step": step})

    def restart(self, config_toml: str, run: RunInfo) -> None:
        """Start over with another recipe: for a run that has recorded nothing (`is_blank`)."""
        replace_file(self.layout.config_toml, config_toml.encode())
        replace_file(self.layout.run_json, run.model_dump_json(indent=2).encode())
        for digest in (self.layout.sft_data, self.layout.older_sft_data):
            digest.unlink(missing_ok=True)
        self.info = run
        self._note({"event": "restarted"})

    def sync(self) -> None:
        """Force everything to the disk."""
        self._writes.now(self._sync)

    async def synced(self) -> None:
        """Do as `sync`, at the end of a step, before its checkpoint; the event loop goes on.

        Raises StoreError, and DeadlineError if the disk hangs.
        """
        await self._writes.carry_out(self._sync)

    def _sync(self) -> None:
        if self._segment is not None:
            self._segment.sync()
        for journal in (self.ledger, self._metrics, self._control, self._manifest):
            journal.sync()

    def close(self) -> None:
        """Write and sync what is left, and release the lock for another writer.

        Raises the StoreError of a write that no caller has got, and DeadlineError if the disk
        hangs; the files then stay open, because the thread still uses them.
        """
        self._writes.close()
        self._sync()
        if self._segment is not None:
            self._segment.close()
        for journal in (self.ledger, self._metrics, self._control, self._manifest):
            journal.close()
        try:
            for closer in reversed(self._closers):
                closer()
        finally:
            self._lock.release()
        self._writes.check_reported()

    def on_close(self, closer: Callable[[], None]) -> None:
        """Call `closer` when everything is written, before another process may write."""
        self._closers.append(closer)

    def _next_segment(self) -> SegmentWriter:
        if self._segment is not None:
            self._segment.sync()
            self._segment.close()
        names = self.layout.segments()
        name = f"{int(names[-1]) + 1 if names else 1:06d}"
        segment = SegmentWriter(self.layout.episodes, self.layout.index, name)
        self._note({"event": "segment", "segment": name})
        return segment

    def _note(self, event: Mapping[str, str | int]) -> None:
        self._manifest.append([one_line(event)], f"the note {event}")


def check_new_folder(path: Path) -> None:
    """Raise StoreError unless a run can start at `path`: a new or empty folder, apart from other
    runs in folders of their own, and from what a failed start left.
    """
    if not path.exists():
        return
    layout = RunLayout(path)
    ours = {folder.name for folder in (*layout.folders, layout.tool_traffic)} | {"config.toml"}
    foreign = sorted(
        item.name
        for item in path.iterdir()
        if item.name not in ours
        and not item.name.startswith(".")
        and not RunLayout(item).run_json.exists()
    )
    if foreign:
        raise StoreError(f"expected a new or empty folder, found {foreign[:4]} in {path}")


def _check_schema(batch: pa.RecordBatch) -> None:
    if not batch.schema.equals(EPISODE_SCHEMA, check_metadata=True):
        raise StoreError(f"expected a batch in EPISODE_SCHEMA, found columns {batch.schema.names}")


def _write_table(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    replace_file(path, memoryview(sink.getvalue()))
