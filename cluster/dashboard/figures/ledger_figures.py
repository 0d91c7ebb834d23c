"""The ledger: what was dropped or retried and why, and episodes by state."""

from collections.abc import Mapping

import duckdb

from cluster.dashboard.episodes.paging import Cursor
from cluster.dashboard.index.database import rows_of
from cluster.dashboard.models.analysis import LedgerPage, LedgerRow, LedgerSummary, ReasonSeries

MEANINGS: Mapping[str, str] = {
    "stale": "it arrived with weights older than rollouts.max_staleness allows",
    "zero_variance": "all rewards of its group are equal, so none has an advantage",
    "infra_failed": "the infrastructure failed, and so did its retries",
    "deadline": "it exceeded its time limit because the world was too slow",
    "overlong": "it is longer than the model's context",
    "cancelled": "it was cancelled",
    "prompt_too_long": "the task's prompt leaves no room to answer",
    "truncated": "it was truncated, and learner.mask_truncated is set",
    "no_reward": "it has no reward",
    "group_of_one": "it is the only one of its group with a reward",
    "greedy": "it was sampled at temperature 0",
    "no_policy_tokens": "no token of it is under the loss",
    "no_logprobs": "the policy sampled nothing: it is a teacher's",
    "bad_logprobs": "a logprob is infinite or positive",
    "non_finite": "a logit, loss or gradient of its step was not finite",
    "surplus": "the run ended before it used it",
    "evaluated": "it was sampled for an evaluation",
    "collected": "it was collected as SFT data",
}
_BUCKETS = 60
_MOST_VIOLATIONS = 100


def meaning_of(event: str, reason: str) -> str:
    """Say what an entry means."""
    if event == "re_leased":
        return "the attempt was given up and the episode was scheduled again"
    if event == "rolled_back":
        return "training returned to a checkpoint; later steps were undone"
    return MEANINGS.get(reason, "")


def ledger_page(
    cursor: duckdb.DuckDBPyConnection, reason: str, event: str, limit: int, cursor_text: str
) -> LedgerPage:
    """Return drops, retries and roll-backs, the newest first."""
    asked = f"ledger {event} {reason}"
    place = Cursor.read(cursor_text, asked) if cursor_text else None
    where = "(? = '' OR reason = ?) AND (? = '' OR event = ?)"
    parameters = [reason, reason, event, event]
    total = rows_of(
        cursor, f"SELECT count(DISTINCT (line, grp)) FROM drops WHERE {where}", parameters
    )[0][0]
    before = "AND line < ?" if place else ""
    found = rows_of(
        cursor,
        "SELECT line, event, reason, grp, any_value(task), list(episode ORDER BY episode), "
        f"any_value(step) FROM drops WHERE {where} {before} GROUP BY line, event, reason, grp "
        f"ORDER BY line DESC, grp LIMIT {limit + 1}",
        [*parameters, *([place.uid] if place else [])],
    )
    shown = found[:limit]
    if len(found) > limit:  # a page ends between two lines, so that none is split
        whole = [row for row in shown if row[0] != found[limit][0]]
        shown = whole or shown
    names = [name for row in shown for name in row[5]]
    ends = dict(
        rows_of(
            cursor,
            "SELECT episode, max(started_at + wall_s) FROM episodes "
            "WHERE episode IN (SELECT unnest(?)) GROUP BY episode",
            (names,),
        )
    )
    rows = [
        LedgerRow(
            number=line, event=kind, reason=why, meaning=meaning_of(kind, why), group=group,
            task=task, episodes=[name for name in episodes if name], step=step,
            at=max((ends[name] for name in episodes if name in ends), default=None),
        )
        for line, kind, why, group, task, episodes, step in shown
    ]  # fmt: skip
    following = Cursor(0, None, shown[-1][0]).text(asked) if len(found) > limit else None
    return LedgerPage(rows=rows, next=following, total=total)


def ledger_summary(cursor: duckdb.DuckDBPyConnection, *, written: bool) -> LedgerSummary:
    """Count episodes by state, and drops by reason over the steps."""
    states = dict(rows_of(cursor, "SELECT state, count(*) FROM episodes GROUP BY state"))
    opened = rows_of(cursor, "SELECT count(*) FROM leases")[0][0]
    if opened:
        states["leased"] = opened
    low, high = rows_of(cursor, "SELECT min(step), max(step) FROM episodes")[0]
    edges = _edges(low, high)
    width = edges[1] - edges[0] if len(edges) > 1 else 1
    found = rows_of(
        cursor,
        "SELECT event, reason, least(greatest((coalesce(step, ?) - ?) // ?, 0), ?) AS bucket, "
        "count(*) FROM drops WHERE event <> 'rolled_back' GROUP BY ALL",
        [edges[-1], edges[0], width, len(edges) - 1],
    )
    by_reason: dict[tuple[str, str], list[int]] = {}
    for event, reason, bucket, count in found:
        name = (event, reason if event == "dropped" else "")
        by_reason.setdefault(name, [0] * len(edges))[int(bucket)] += count
    reasons = [
        ReasonSeries(
            reason=reason if event == "dropped" else "retried",
            meaning=meaning_of(event, reason), total=sum(counts), counts=counts,
        )
        for (event, reason), counts in by_reason.items()
    ]  # fmt: skip
    retries = sum(row.total for row in reasons if row.reason == "retried")
    return LedgerSummary(
        states=states,
        edges=edges,
        reasons=sorted(reasons, key=lambda row: -row.total),
        retries=retries,
        violations=[] if written else _violations(cursor),
    )


def _edges(low: int | None, high: int | None) -> list[int]:
    if low is None or high is None:
        return [0]
    width = max(-(-(high - low + 1) // _BUCKETS), 1)
    return list(range(low, high + 1, width))


def _violations(cursor: duckdb.DuckDBPyConnection) -> list[str]:
    found = rows_of(
        cursor,
        f"SELECT episode, attempt FROM leases ORDER BY episode LIMIT {_MOST_VIOLATIONS}",
    )
    return [
        f"{episode} (attempt {attempt}) was scheduled and did not end: resuming plays it again"
        for episode, attempt in found
    ]
