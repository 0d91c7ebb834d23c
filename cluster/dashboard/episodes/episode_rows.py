"""Rows of the episode table from the index, and the fields that come from details."""

import math
from collections.abc import Sequence
from typing import Any, cast

import duckdb

from cluster.dashboard.filters.fields import FLAGS, STALENESS
from cluster.dashboard.index.database import Row, rows_of
from cluster.dashboard.models.episodes import EpisodeRow, EpisodeState

_NARROW = (
    *("uid", "episode", "attempt", "grp", "task", "sample_index", "environment", "split", "mode"),
    *("source", "outcome", "reward", "oldest_version", "started_at", "wall_s", "tokens"),
    *("state", "reason", "step", "advantage", "trial_advantage"),
)
_DETAILS = (
    *("turns", "trial_calls", "execution_calls", "tool_errors", "infra_errors"),
    *("sampled_tokens", "generate_s", "tool_s", "queue_s", "worker", "answer", "question", "error"),
)
_CHOSEN = "uid BETWEEN $low AND $high AND uid IN (SELECT unnest($uids))"
"""The bounds let the database skip what it stored apart from them: siblings lie close together."""
_SELECT = f"SELECT {', '.join(_NARROW)}, {STALENESS} AS staleness FROM episodes e WHERE e.{_CHOSEN}"
_SELECT_DETAILS = f"SELECT uid, {', '.join((*_DETAILS, *FLAGS))} FROM details WHERE {_CHOSEN}"
"""Two queries: to plan one that joins them takes longer than to run both."""


def rows_for(cursor: duckdb.DuckDBPyConnection, uids: Sequence[int]) -> list[EpisodeRow]:
    """Return the rows of `uids`, in their order."""
    if not uids:
        return []
    bound = {"uids": list(uids), "low": min(uids), "high": max(uids)}
    narrow = {row[0]: row for row in cursor.execute(_SELECT, bound).fetchall()}
    details = {row[0]: row[1:] for row in cursor.execute(_SELECT_DETAILS, bound).fetchall()}
    unread = (None,) * (len(_DETAILS) + len(FLAGS))
    return [_row((*narrow[uid], *details.get(uid, unread))) for uid in uids if uid in narrow]


def uids_of(
    cursor: duckdb.DuckDBPyConnection, episode: str, attempt: int | None = None
) -> list[tuple[int, int]]:
    """Return (attempt, uid) of the stored attempts of an episode, oldest first."""
    sql = "SELECT attempt, uid FROM episodes WHERE episode = ?"
    parameters: list[Any] = [episode]
    if attempt is not None:
        sql, parameters = f"{sql} AND attempt = ?", [episode, attempt]
    return [(a, u) for a, u in rows_of(cursor, f"{sql} ORDER BY attempt, uid", parameters)]


def _row(row: Row) -> EpisodeRow:
    narrow = dict(zip(_NARROW, row, strict=False))
    rest = row[len(_NARROW) :]
    staleness, details = rest[0], dict(zip((*_DETAILS, *FLAGS), rest[1:], strict=True))
    known = details["turns"] is not None
    flags = [name for name in FLAGS if details.pop(name)]
    group = narrow.pop("grp")
    state = cast(EpisodeState, narrow.pop("state"))
    return EpisodeRow(
        **{name: _finite(value) for name, value in narrow.items()},
        group=group,
        state=state,
        staleness=staleness,
        **{name: _finite(value) for name, value in details.items()},
        flags=flags if known else None,
    )


def _finite(value: Any) -> Any:
    """Numbers that are not finite are missing: JSON has none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
