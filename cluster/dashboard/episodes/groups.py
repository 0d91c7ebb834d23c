"""Groups: siblings of one task, whose rewards are compared with each other."""

import statistics
from collections.abc import Sequence
from typing import Any

import duckdb

from cluster.dashboard.episodes.numbers import numbers_of, phase_name
from cluster.dashboard.episodes.paging import Cursor
from cluster.dashboard.episodes.stored import Stored, read_stored
from cluster.dashboard.filters.compiling import Compiled
from cluster.dashboard.index.database import rows_of
from cluster.dashboard.index.segment_files import SegmentFiles
from cluster.dashboard.models.episodes import (
    EpisodeRow,
    Group,
    GroupPage,
    GroupRow,
    Lane,
    LanePiece,
    OpenEpisode,
)
from cluster.dashboard.problems import not_found

_MOST_LANES = 256
_FAILED = ("tool_error", "timeout", "infra_error")
_SAME = 1e-6
_LANE_COLUMNS = ("turns", "reward_parts", "question")


def group_page(
    cursor: duckdb.DuckDBPyConnection,
    condition: Compiled,
    zero_variance: bool | None,
    limit: int,
    cursor_text: str,
) -> GroupPage:
    """Return a page of groups that have a matching episode, the newest first."""
    asked = f"groups {condition.sql} {condition.parameters} {zero_variance}"
    place = Cursor.read(cursor_text, asked) if cursor_text else None
    inner = (
        "SELECT e.grp AS grp, any_value(e.task) AS task, count(*) AS n, avg(e.reward) AS mean, "
        "min(e.reward) AS low, max(e.reward) AS high, "
        "count(*) FILTER (e.state = 'trained') AS trained, "
        "count(*) FILTER (e.state = 'dropped') AS dropped, max(e.step) AS step, "
        "coalesce(max(nullif(e.reason, '')), '') AS reason, max(e.uid) AS newest, "
        "count(e.reward) > 1 AND max(e.reward) - min(e.reward) <= ? AS same "
        f"FROM {condition.tables} WHERE {condition.sql} GROUP BY e.grp"
    )
    wanted = "TRUE" if zero_variance is None else ("same" if zero_variance else "NOT same")
    parameters: list[Any] = [_SAME, *condition.parameters]
    total = rows_of(cursor, f"SELECT count(*) FROM ({inner}) WHERE {wanted}", parameters)[0][0]
    before = " AND newest < ?" if place else ""
    found = rows_of(
        cursor,
        f"SELECT grp, task, n, mean, low, high, same, trained, dropped, step, reason, newest "
        f"FROM ({inner}) WHERE {wanted}{before} ORDER BY newest DESC LIMIT {limit + 1}",
        [*parameters, *([place.uid] if place else [])],
    )
    names = (
        *("group", "task", "episodes", "reward_mean", "reward_min", "reward_max"),
        *("zero_variance", "trained", "dropped", "step", "reason"),
    )
    rows = [GroupRow(**dict(zip(names, row[:-1], strict=True))) for row in found[:limit]]
    more = len(found) > limit
    following = Cursor(0, None, found[limit - 1][-1]).text(asked) if more else None
    return GroupPage(rows=rows, next=following, total=total)


def one_group(cursor: duckdb.DuckDBPyConnection, files: SegmentFiles, name: str) -> Group:
    """Return the last stored attempts of a group's episodes, and what is in progress."""
    uids = [
        uid
        for (uid,) in rows_of(
            cursor,
            "SELECT arg_max(uid, (attempt, uid)) FROM episodes WHERE grp = ? "
            f"GROUP BY episode, sample_index ORDER BY sample_index, episode LIMIT {_MOST_LANES}",
            (name,),
        )
    ]
    open_rows = rows_of(
        cursor,
        "SELECT episode, attempt, grp, task, sample_index, why FROM leases WHERE grp = ? "
        "ORDER BY sample_index",
        (name,),
    )
    if not uids and not open_rows:
        raise not_found(f"there is no group {name[:100]!r}", "list the groups of the run")
    stored = read_stored(cursor, files, uids)
    fields = ("episode", "attempt", "group", "task", "sample_index", "why")
    opened = [OpenEpisode(**dict(zip(fields, row, strict=True))) for row in open_rows]
    rewards = [one.row.reward for one in stored if one.row.reward is not None]
    zero = len(rewards) > 1 and max(rewards) - min(rewards) <= _SAME
    question = stored[0].record(_LANE_COLUMNS)["question"] if stored else ""
    return Group(
        group=name,
        task=stored[0].row.task if stored else opened[0].task,
        question=question[:2_000],
        lanes=[_lane(one) for one in stored],
        open=opened,
        zero_variance=zero,
        reward_mean=statistics.fmean(rewards) if rewards else None,
        reward_std=statistics.stdev(rewards) if len(rewards) > 1 else None,
        baseline_note=_note([one.row for one in stored], zero=zero),
    )


def _lane(one: Stored) -> Lane:
    record = one.record(_LANE_COLUMNS)
    pieces = [
        LanePiece(
            turn=number,
            phase=phase_name(turn["phase"]),
            tokens=turn["end"] - turn["start"],
            calls=len(turn["calls"]),
            errors=sum(call["status"] in _FAILED for call in turn["calls"]),
            policy_error=turn["policy_error"],
        )
        for number, turn in enumerate(record["turns"])
    ]
    parts = {part.name: part.value for part in numbers_of(record["reward_parts"])}
    return Lane(row=one.row, pieces=pieces, reward_parts=parts)


def _note(rows: Sequence[EpisodeRow], *, zero: bool) -> str:
    if any(row.advantage is not None for row in rows):
        return ""
    if zero:
        return "all rewards are equal: the group has no advantage and was not trained on"
    if any(row.state in ("stored", "finished") for row in rows):
        return "no step has trained on the group yet"
    reasons = sorted({row.reason for row in rows if row.reason})
    if reasons:
        return f"the group was not trained on: {', '.join(reasons)}"
    return "no learner has given this group advantages"
