"""The fleet: what each worker did in each slice of time, from the episodes that it ran.

An episode's seconds of generation, tools and queue are spread evenly over its time: a stored
episode has their sums, not their order.
"""

import duckdb

from cluster.dashboard.index.database import rows_of
from cluster.dashboard.index.run_facts import Step
from cluster.dashboard.models.analysis import Fleet, FleetCell, PushMark

_MOST_WORKERS = 200
_NOTE = (
    "Made of stored episodes: what is in progress is missing, and an episode's parts are spread "
    "evenly over its time. The rest of a worker's time is idle, or weights were pushed."
)


def fleet_of(
    cursor: duckdb.DuckDBPyConnection,
    steps: list[Step],
    start: float | None,
    end: float | None,
    buckets: int,
) -> Fleet:
    """Return worker by time between two Unix times, by default the run's whole time."""
    first, last = rows_of(
        cursor,
        "SELECT min(started_at), max(started_at + wall_s) FROM episodes "
        "WHERE isfinite(started_at) AND isfinite(wall_s)",
    )[0]
    low = first if start is None else start
    high = last if end is None else end
    newest = steps[-1].values if steps else {}
    alive, losses = newest.get("workers"), newest.get("worker_losses")
    if low is None or high is None:
        low = high = 0.0
    if high <= low:
        high = low + 1.0
    width = (high - low) / buckets
    cells = _cells(cursor, low, high, width, buckets)
    return Fleet(
        start=low,
        end=high,
        bucket_s=width,
        workers=sorted({cell.worker for cell in cells}),
        cells=cells,
        pushes=_pushes(cursor, steps),
        alive=None if alive is None else int(alive),
        losses=None if losses is None else int(losses),
        note=_NOTE,
    )


def _cells(
    cursor: duckdb.DuckDBPyConnection, low: float, high: float, width: float, buckets: int
) -> list[FleetCell]:
    found = rows_of(
        cursor,
        """
        WITH played AS (
            SELECT coalesce(d.worker, '') AS worker, e.started_at AS a,
                   e.started_at + e.wall_s AS b, e.wall_s AS wall, d.generate_s AS generate,
                   d.tool_s AS tool, d.queue_s AS queue, d.newest_version AS version
            FROM details d JOIN episodes e USING (uid)
            WHERE isfinite(e.started_at) AND isfinite(e.wall_s) AND e.wall_s >= 0
              AND e.started_at < $high AND e.started_at + e.wall_s > $low
        ), sliced AS (
            SELECT *, unnest(range(
                greatest(floor((a - $low) / $width), 0)::BIGINT,
                least(floor((b - $low) / $width) + 1, $buckets)::BIGINT)) AS bucket
            FROM played
        ), parts AS (
            SELECT *, greatest(least(b, $low + (bucket + 1) * $width)
                     - greatest(a, $low + bucket * $width), 0) AS inside FROM sliced
        )
        SELECT worker, bucket, count(*), sum(inside) / $width,
               sum(inside * generate / nullif(wall, 0)) / nullif(sum(inside), 0),
               sum(inside * tool / nullif(wall, 0)) / nullif(sum(inside), 0),
               sum(inside * queue / nullif(wall, 0)) / nullif(sum(inside), 0),
               max(version), max(max(version)) OVER (ORDER BY bucket)
        FROM parts GROUP BY worker, bucket ORDER BY worker, bucket
        """,
        {"low": low, "high": high, "width": width, "buckets": buckets},
    )
    workers = sorted({row[0] for row in found})[:_MOST_WORKERS]
    kept = set(workers)
    return [
        FleetCell(
            worker=worker, bucket=bucket, episodes=count, running=running or 0.0,
            generate=min(generate or 0.0, 1.0), tool=min(tool or 0.0, 1.0),
            queue=min(queue or 0.0, 1.0), version=version,
            lag=None if version is None or best is None else max(best - version, 0),
        )
        for worker, bucket, count, running, generate, tool, queue, version, best in found
        if worker in kept
    ]  # fmt: skip


def _pushes(cursor: duckdb.DuckDBPyConnection, steps: list[Step]) -> list[PushMark]:
    firsts = dict(
        rows_of(
            cursor,
            "SELECT oldest_version, min(started_at) FROM episodes WHERE oldest_version >= 0 "
            "AND isfinite(started_at) GROUP BY oldest_version",
        )
    )
    return [
        PushMark(step=step.step, at=firsts.get(step.step), seconds=step.values["push_s"])
        for step in steps
        if "push_s" in step.values
    ]
