"""Episodes as files: a table or whole episodes, as Parquet or as lines of JSON."""

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.dashboard.episodes.episode_rows import rows_for
from cluster.dashboard.episodes.numbers import PHASES
from cluster.dashboard.episodes.stored import TOKEN_COLUMNS, read_batches
from cluster.dashboard.filters.compiling import Compiled
from cluster.dashboard.index.run_index import RunIndex
from envs.errors import StoreError
from rollout.episode_schema import EPISODE_SCHEMA

_AT_ONCE = 256
_MAPS = ("reward_parts", "tags", "extra")


def uids_matching(index: RunIndex, condition: Compiled) -> list[int]:
    """Return the episodes that match, in the order of the store."""
    found = index.rows(
        f"SELECT e.uid FROM {condition.tables} WHERE {condition.sql} ORDER BY e.uid",
        condition.parameters,
    )
    return [uid for (uid,) in found]


def batches_matching(index: RunIndex, condition: Compiled) -> Iterator[pa.Table]:
    """Yield whole episodes that match, some at a time; damaged ones are left out."""
    for uids in _pieces(uids_matching(index, condition)):
        with index.cursor() as cursor:
            yield pa.Table.from_batches(_readable(index, cursor, uids), EPISODE_SCHEMA)


def row_lines(index: RunIndex, condition: Compiled) -> Iterator[bytes]:
    """Yield the rows of the table as lines of JSON."""
    for uids in _pieces(uids_matching(index, condition)):
        with index.cursor() as cursor:
            rows = rows_for(cursor, uids)
        yield "".join(f"{row.model_dump_json()}\n" for row in rows).encode()


def episode_lines(index: RunIndex, condition: Compiled, *, tokens: bool) -> Iterator[bytes]:
    """Yield whole episodes as lines of JSON."""
    names = [n for n in EPISODE_SCHEMA.names if tokens or n not in TOKEN_COLUMNS]
    for table in batches_matching(index, condition):
        rows = table.select(names).to_pylist()
        yield "".join(f"{json.dumps(_plain(row), ensure_ascii=True)}\n" for row in rows).encode()


def write_parquet(index: RunIndex, condition: Compiled, folder: Path, *, whole: bool) -> Path:
    """Write the matching episodes to a new file in `folder`; the caller removes it."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".parquet", delete=False) as file:
        path = Path(file.name)
    try:
        if whole:
            with pq.ParquetWriter(path, EPISODE_SCHEMA, compression="zstd") as writer:
                for table in batches_matching(index, condition):
                    writer.write_table(table)
        else:
            _write_rows(index, condition, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _write_rows(index: RunIndex, condition: Compiled, path: Path) -> None:
    with index.cursor() as cursor:
        reader = cursor.sql(
            "SELECT e.* EXCLUDE (segment, place, nbytes, row), d.* EXCLUDE (uid) FROM episodes e "
            "LEFT JOIN details d USING (uid) WHERE e.uid IN "
            f"(SELECT e.uid FROM {condition.tables} WHERE {condition.sql}) ORDER BY e.uid",
            params=list(condition.parameters),
        ).to_arrow_reader(20_000)
        with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)


def _readable(index: RunIndex, cursor: Any, uids: list[int]) -> list[pa.RecordBatch]:
    try:
        found = read_batches(cursor, index.files, uids)
        return [found[uid] for uid in uids]
    except StoreError:
        pass
    batches = []
    for uid in uids:
        try:
            batches += read_batches(cursor, index.files, [uid]).values()
        except StoreError:
            continue
    return batches


def _pieces(uids: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(uids), _AT_ONCE):
        yield uids[start : start + _AT_ONCE]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a record as JSON has it: maps as objects, phases by name, no NaN."""
    found = {name: dict(value) if name in _MAPS else value for name, value in row.items()}
    found["turns"] = [
        {**turn, "phase": PHASES[turn["phase"]] if turn["phase"] < len(PHASES) else turn["phase"]}
        for turn in row["turns"]
    ]
    return _finite(found)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return value
