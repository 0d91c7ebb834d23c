"""What failed, by reason, each with an example."""

import duckdb

from cluster.dashboard.filters.compiling import Compiled
from cluster.dashboard.filters.lexer import quoted
from cluster.dashboard.index.database import rows_of
from cluster.dashboard.models.episodes import FailureRow, Failures

_MOST = 50
_SHOWN = 300
_ENDED = f"""
SELECT 'outcome' AS what, e.outcome AS reason,
       regexp_replace(left(coalesce(d.error, ''), {_SHOWN}), '[0-9]+', 'N', 'g') AS said,
       count(*) AS n, max(e.uid) AS example
FROM episodes e LEFT JOIN details d USING (uid)
WHERE e.outcome <> 'answered' AND {{matching}} GROUP BY ALL
"""
_LEFT_OUT = """
SELECT e.state AS what, e.reason AS reason, '' AS said, count(*) AS n, max(e.uid) AS example
FROM episodes e WHERE e.reason <> '' AND {matching} GROUP BY ALL
"""


def failures_of(cursor: duckdb.DuckDBPyConnection, condition: Compiled) -> Failures:
    """Count the episodes that match by how they failed: the outcome with its error, and the reason
    for which an episode was dropped or retried. Errors that differ in numbers alone are one.
    """
    matching = "TRUE"
    if condition != Compiled():
        matching = f"e.uid IN (SELECT e.uid FROM {condition.tables} WHERE {condition.sql})"
    sql = (
        f"SELECT f.*, e.episode, left(d.error, {_SHOWN}) FROM ({_ENDED} UNION ALL {_LEFT_OUT}) f "
        "JOIN episodes e ON e.uid = f.example LEFT JOIN details d ON d.uid = f.example "
        f"ORDER BY f.what <> 'outcome', f.n DESC, f.reason, f.said LIMIT {_MOST}"
    ).format(matching=matching)
    found = rows_of(cursor, sql, (*condition.parameters, *condition.parameters))
    total = rows_of(
        cursor,
        f"SELECT count(*) FROM {condition.tables} WHERE {condition.sql}",
        condition.parameters,
    )[0][0]
    return Failures(
        rows=[
            FailureRow(
                what=what,
                reason=reason,
                episodes=count,
                error=(error or "") if what == "outcome" else "",
                example=episode,
                filter=f"outcome={reason}"
                if what == "outcome"
                else f"state={what} and reason={quoted(reason)}",
            )
            for what, reason, _, count, _, episode, error in found
        ],
        total=total,
    )
