"""Tools: how often each is called, how long it takes and how it fails, by phase."""

from typing import Any

import duckdb
import pyarrow as pa

from cluster.dashboard.episodes.paging import Cursor
from cluster.dashboard.episodes.stored import read_batches
from cluster.dashboard.filters.compiling import Compiled
from cluster.dashboard.filters.lexer import quoted
from cluster.dashboard.index.database import rows_of
from cluster.dashboard.index.segment_files import SegmentFiles
from cluster.dashboard.models.analysis import CallPage, CallRow, ToolRow
from envs.errors import StoreError

_MOST_ROWS = 500
_SHOWN = 200


def tool_rows(cursor: duckdb.DuckDBPyConnection, condition: Compiled, by: str) -> list[ToolRow]:
    """Return figures per tool or environment, for both phases and each; the slowest first."""
    grouped = "c.tool, e.environment" if by == "tool" else "e.environment"
    shown = "c.tool" if by == "tool" else "''"
    joined = "JOIN details d USING (uid)" if condition.details else ""
    found = rows_of(
        cursor,
        f"SELECT {shown} AS tool, e.environment AS environment, "
        "coalesce(c.phase, 'all') AS phase, count(*) FILTER (c.first_of_tool), "
        "count(*) FILTER (c.first_of_phase), count(*), "
        "approx_quantile(c.seconds, 0.5), approx_quantile(c.seconds, 0.99), "
        "count(*) FILTER (c.status = 'tool_error'), count(*) FILTER (c.status = 'timeout'), "
        "count(*) FILTER (c.status = 'infra_error'), avg(c.result_length), "
        "sum(c.seconds) AS total "
        f"FROM calls c JOIN episodes e USING (uid) {joined} WHERE {condition.sql} "
        f"GROUP BY GROUPING SETS (({grouped}), ({grouped}, c.phase)) "
        f"ORDER BY total DESC LIMIT {_MOST_ROWS}",
        condition.parameters,
    )
    callers = _callers(cursor, condition) if by == "environment" else {}
    return [_row(row, callers) for row in found]


def _callers(cursor: duckdb.DuckDBPyConnection, condition: Compiled) -> dict[tuple[str, str], int]:
    """Return how many episodes called any tool, by environment and phase."""
    found = rows_of(
        cursor,
        "SELECT e.environment, count(*) FILTER (d.trial_calls > 0), "
        "count(*) FILTER (d.execution_calls > 0), "
        "count(*) FILTER (d.trial_calls + d.execution_calls > 0) "
        "FROM episodes e JOIN details d USING (uid) "
        f"WHERE {condition.sql} GROUP BY e.environment",
        condition.parameters,
    )
    phases = ("trial", "execution", "all")
    return {(row[0], phase): row[i] for row in found for i, phase in enumerate(phases, 1)}


def _row(row: tuple[Any, ...], callers: dict[tuple[str, str], int]) -> ToolRow:
    tool, environment, phase, of_tool, of_phase, calls, p50, p99, *rest = row
    errors, timeouts, infra, size, _ = rest
    episodes = of_tool if phase == "all" else of_phase
    where = f"environment={quoted(environment)} and calls>0"
    if tool:
        where = f"tool({quoted(tool)}).calls>0"
    return ToolRow(
        tool=tool,
        environment=environment,
        phase=phase,
        episodes=callers[environment, phase] if callers else episodes,
        calls=calls,
        p50_s=p50,
        p99_s=p99,
        errors=errors,
        error_rate=errors / calls,
        timeouts=timeouts,
        timeout_rate=timeouts / calls,
        infra=infra,
        infra_share=infra / calls,
        mean_result=size,
        filter=where,
    )


def call_page(
    cursor: duckdb.DuckDBPyConnection,
    files: SegmentFiles,
    condition: Compiled,
    chosen: dict[str, str],
    limit: int,
    cursor_text: str,
) -> CallPage:
    """Return calls with the values `chosen` (tool, status, phase), the newest episodes first."""
    asked = f"calls {condition.sql} {condition.parameters} {sorted(chosen.items())}"
    place = Cursor.read(cursor_text, asked) if cursor_text else None
    tests = [(f"c.{name} = ?", value) for name, value in chosen.items() if value]
    where = " AND ".join([f"({condition.sql})", *(sql for sql, _ in tests)])
    joined = "JOIN details d USING (uid)" if condition.details else ""
    tables = f"calls c JOIN episodes e USING (uid) {joined}"
    parameters = [*condition.parameters, *(value for _, value in tests)]
    total = rows_of(cursor, f"SELECT count(*) FROM {tables} WHERE {where}", parameters)[0][0]
    # A call's place in one number, so that a page ends between two calls of an episode.
    order = "(c.uid * 1048576 + c.turn * 1024 + c.number)"
    before = f" AND {order} < ?" if place else ""
    found = rows_of(
        cursor,
        "SELECT c.uid, e.episode, e.attempt, c.turn, c.number, c.tool, c.status, c.phase, "
        f"c.seconds, c.cpu_seconds, {order} AS place FROM {tables} WHERE {where}{before} "
        f"ORDER BY place DESC LIMIT {limit + 1}",
        [*parameters, *([place.uid] if place else [])],
    )
    shown = found[:limit]
    texts = _texts(cursor, files, shown)
    names = (
        *("uid", "episode", "attempt", "turn", "number", "tool", "status", "phase"),
        *("seconds", "cpu_seconds"),
    )
    rows = [
        CallRow(
            **dict(zip(names, row[:-1], strict=True)), arguments=texts[i][0], result=texts[i][1]
        )
        for i, row in enumerate(shown)
    ]
    following = Cursor(0, None, shown[-1][-1]).text(asked) if len(found) > limit else None
    return CallPage(rows=rows, next=following, total=total)


def _texts(
    cursor: duckdb.DuckDBPyConnection, files: SegmentFiles, rows: list[tuple[Any, ...]]
) -> list[tuple[str, str]]:
    """Return arguments and results of calls, cut; empty where the episode is damaged."""
    try:
        batches = read_batches(cursor, files, list({row[0] for row in rows})) if rows else {}
    except StoreError:
        batches = {}
    turns = {uid: _turns(batch) for uid, batch in batches.items()}
    found = []
    for uid, _, _, turn, number, *_ in rows:
        try:
            call = turns[uid][turn]["calls"][number]
            found.append((call["arguments"][:_SHOWN], call["result"][:_SHOWN]))
        except (KeyError, IndexError):
            found.append(("", ""))
    return found


def _turns(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    return batch.column("turns").to_pylist()[0]
