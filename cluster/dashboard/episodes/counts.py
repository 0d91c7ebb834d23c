"""Facets and histograms: how the episodes that match a filter are distributed."""

import math

import duckdb

from cluster.dashboard.filters.compiling import Compiled
from cluster.dashboard.filters.fields import FIELDS, FLAGS, Field
from cluster.dashboard.index.database import rows_of
from cluster.dashboard.models.episodes import Facet, FacetValue, Histogram

_MOST = 30
_TITLES = {
    "outcome": "Outcome",
    "state": "State in the ledger",
    "reason": "Why dropped or retried",
    "split": "Split",
    "mode": "Mode",
    "source": "Source",
    "environment": "Environment",
    "worker": "Worker",
    "flag": "Flags",
    "tool": "Tool called",
}


def facet(cursor: duckdb.DuckDBPyConnection, name: str, condition: Compiled) -> Facet:
    """Count the values of a field over the episodes that match."""
    if name == "flag":
        return _flags(cursor, condition)
    if name == "tool":
        return _tools(cursor, condition)
    field = FIELDS[name]
    tables = _tables(condition, field)
    found = rows_of(
        cursor,
        f"SELECT {field.sql} AS value, count(*) AS n FROM {tables} WHERE {condition.sql} "
        "GROUP BY value ORDER BY n DESC, value",
        condition.parameters,
    )
    values = [(value, count) for value, count in found if value not in (None, "")]
    return _facet(name, values)


def histogram(
    cursor: duckdb.DuckDBPyConnection, name: str, condition: Compiled, bins: int
) -> Histogram:
    """Count a number in bins of equal width over the episodes that match."""
    field = FIELDS[name]
    tables = _tables(condition, field)
    finite = f"isfinite(({field.sql})::DOUBLE)"
    low, high, present, total = rows_of(
        cursor,
        f"SELECT min({field.sql}) FILTER ({finite}), max({field.sql}) FILTER ({finite}), "
        f"count(*) FILTER ({finite}), count(*) FROM {tables} WHERE {condition.sql}",
        condition.parameters,
    )[0]
    if not present:
        return Histogram(field=name, edges=[], counts=[], missing=total)
    low, width, bins = _bins(float(low), float(high), bins)
    found = rows_of(
        cursor,
        f"SELECT least(greatest(floor((({field.sql})::DOUBLE - ?) / ?)::BIGINT, 0), ?) AS bin, "
        f"count(*) FROM {tables} WHERE ({condition.sql}) AND {finite} GROUP BY bin",
        (low, width, bins - 1, *condition.parameters),
    )
    by_bin = dict(found)
    return Histogram(
        field=name,
        edges=[low + width * index for index in range(bins + 1)],
        counts=[by_bin.get(index, 0) for index in range(bins)],
        missing=total - present,
    )


def _bins(low: float, high: float, bins: int) -> tuple[float, float, int]:
    """Return the first edge, the width and the number of bins; whole steps where they fit."""
    if high <= low:
        return low, max(abs(low) * 1e-6, 1e-6), 1
    width = (high - low) / bins
    if not math.isfinite(width) or low + width == low:
        return low, high - low, 1
    return low, width, bins


def _flags(cursor: duckdb.DuckDBPyConnection, condition: Compiled) -> Facet:
    counts = ", ".join(f"count(*) FILTER (d.{name})" for name in FLAGS)
    found = rows_of(
        cursor,
        f"SELECT {counts} FROM episodes e JOIN details d USING (uid) WHERE {condition.sql}",
        condition.parameters,
    )[0]
    values = sorted(zip(FLAGS, found, strict=True), key=lambda pair: -pair[1])
    return _facet("flag", [(name, count) for name, count in values if count])


def _tools(cursor: duckdb.DuckDBPyConnection, condition: Compiled) -> Facet:
    matching = f"uid IN (SELECT e.uid FROM {condition.tables} WHERE {condition.sql})"
    if condition == Compiled():
        matching = "TRUE"
    found = rows_of(
        cursor,
        f"SELECT tool, count(*) AS n FROM calls WHERE first_of_tool AND {matching} "
        "GROUP BY tool ORDER BY n DESC, tool",
        condition.parameters,
    )
    return _facet("tool", [(name, count) for name, count in found])


def _facet(name: str, values: list[tuple[str, int]]) -> Facet:
    return Facet(
        field=name,
        title=_TITLES[name],
        values=[FacetValue(value=str(value), count=count) for value, count in values[:_MOST]],
        others=sum(count for _, count in values[_MOST:]),
        quote=name not in ("outcome", "state", "flag"),
    )


def _tables(condition: Compiled, field: Field) -> str:
    details = condition.details or field.details
    return "episodes e JOIN details d USING (uid)" if details else "episodes e"
