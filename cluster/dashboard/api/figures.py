"""Figures over many episodes: tools and their calls, the ledger, the fleet."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from cluster.dashboard.api.context import CursorQuery, FilterQuery, IndexDep, LimitQuery, RunDep
from cluster.dashboard.figures.fleet_figures import fleet_of
from cluster.dashboard.figures.ledger_figures import ledger_page, ledger_summary
from cluster.dashboard.figures.tool_figures import call_page, tool_rows
from cluster.dashboard.filters.compiling import compile_filter
from cluster.dashboard.models.analysis import (
    CallPage,
    Fleet,
    LedgerPage,
    LedgerSummary,
    ToolFigures,
)

router = APIRouter(tags=["figures"])
_Word = Annotated[str, Query(max_length=200)]
_Time = Annotated[
    float | None, Query(ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds.")
]


@router.get("/runs/{run}/tools", response_model=ToolFigures)
def tools(
    index: IndexDep,
    filter_text: FilterQuery = "",
    by: Annotated[Literal["tool", "environment"], Query()] = "tool",
) -> ToolFigures:
    """Return how often tools are called, how long they take and how they fail."""
    with index.cursor() as connection:
        rows = tool_rows(connection, compile_filter(filter_text), by)
    return ToolFigures(by=by, rows=rows, coverage=index.coverage)


@router.get("/runs/{run}/calls", response_model=CallPage)
def calls(
    index: IndexDep,
    filter_text: FilterQuery = "",
    tool: _Word = "",
    status: _Word = "",
    phase: _Word = "",
    limit: LimitQuery = 100,
    cursor: CursorQuery = "",
) -> CallPage:
    """Return single calls, the newest first."""
    chosen = {"tool": tool, "status": status, "phase": phase}
    with index.cursor() as connection:
        condition = compile_filter(filter_text)
        return call_page(connection, index.files, condition, chosen, limit, cursor)


@router.get("/runs/{run}/ledger", response_model=LedgerPage)
def ledger(
    index: IndexDep,
    reason: _Word = "",
    event: Annotated[
        Literal["", "dropped", "re_leased", "rolled_back"], Query(description="Only these.")
    ] = "",
    limit: LimitQuery = 100,
    cursor: CursorQuery = "",
) -> LedgerPage:
    """Return what was dropped or retried, each with its reason, the newest first."""
    with index.cursor() as connection:
        return ledger_page(connection, reason, event, limit, cursor)


@router.get("/runs/{run}/ledger/summary", response_model=LedgerSummary)
def summary(run: RunDep, index: IndexDep) -> LedgerSummary:
    """Count episodes by state, and dropped ones by reason over the steps."""
    with index.cursor() as connection:
        return ledger_summary(connection, written=run.facts.is_written())


@router.get("/runs/{run}/fleet", response_model=Fleet)
def fleet(
    run: RunDep,
    index: IndexDep,
    start: _Time = None,
    end: _Time = None,
    buckets: Annotated[int, Query(ge=1, le=400)] = 120,
) -> Fleet:
    """Return what each worker did in each slice of time."""
    with index.cursor() as connection:
        return fleet_of(connection, run.facts.steps(), start, end, buckets)
