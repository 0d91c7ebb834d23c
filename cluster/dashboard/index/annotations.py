"""Advantages that the learner gave episodes, from `annotations/` into the index."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa

from cluster.dashboard.index.database import rows_of
from cluster.dashboard.models.shared import Damage
from rollout.store.regular_files import plain
from rollout.store.run_layout import RunLayout

_COLUMNS = ("episode", "advantage", "trial_advantage")
_NAME = re.compile(r"step-(\d+)\.arrow")
_AT_ONCE = 256
_TORN = (pa.ArrowException, OSError, KeyError, ValueError)


def add_annotations(
    cursor: duckdb.DuckDBPyConnection, layout: RunLayout, note: Callable[[Damage], None]
) -> bool:
    """Take the files that are new or were replaced; return whether there were any."""
    found = _files(layout.root / "annotations")
    known = dict(rows_of(cursor, "SELECT step, mtime FROM annotated"))
    fresh = [(step, path, mtime) for step, path, mtime in found if known.get(step) != mtime]
    for start in range(0, len(fresh), _AT_ONCE):
        tables = []
        for step, path, mtime in fresh[start : start + _AT_ONCE]:
            cursor.execute("DELETE FROM annotated WHERE step = ?", [step])
            cursor.execute("INSERT INTO annotated VALUES (?, ?)", [step, mtime])
            try:
                tables.append(_advantages(path))
            except _TORN as error:
                note(
                    Damage(
                        where=f"annotations/{path.name}",
                        what=f"cannot be read: {str(error)[:200]}",
                        fix="its advantages and overlays are missing; everything else is shown",
                    )
                )
        if tables:
            _update(cursor, pa.concat_tables(tables))
    return bool(fresh)


def _files(folder: Path) -> list[tuple[int, Path, float]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
    found = []
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        if match:
            found.append(
                (int(match[1]), Path(entry.path), entry.stat(follow_symlinks=False).st_mtime)
            )
    return found


def _advantages(path: Path) -> pa.Table:
    with pa.memory_map(plain(path)) as file:
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[0, 1, 2]))
        table = reader.read_all().select(_COLUMNS)
        table.validate(full=True)
        # Copied, so that the file is not mapped any longer than it takes.
        return pa.table(
            {name: pa.array(table[name].to_pylist(), table[name].type) for name in _COLUMNS}
        )


def _update(cursor: duckdb.DuckDBPyConnection, table: pa.Table) -> None:
    cursor.register("annotated_rows", table)
    cursor.execute(
        "UPDATE episodes SET advantage = a.advantage, trial_advantage = a.trial_advantage "
        "FROM annotated_rows a WHERE episodes.episode = a.episode AND episodes.state <> 'retried'"
    )
    cursor.unregister("annotated_rows")
