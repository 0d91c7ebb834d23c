"""The table of episodes: pages, facets, histograms, what is in progress, groups."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from cluster.dashboard.api.context import (
    CursorQuery,
    FilterQuery,
    IndexDep,
    LimitQuery,
    SnapshotQuery,
    tagged,
)
from cluster.dashboard.episodes.counts import facet, histogram
from cluster.dashboard.episodes.episode_rows import rows_for
from cluster.dashboard.episodes.groups import group_page, one_group
from cluster.dashboard.episodes.paging import DEFAULT_SORT, Cursor, Question
from cluster.dashboard.filters.compiling import Compiled, compile_filter
from cluster.dashboard.filters.fields import EXAMPLES, FACETS, FIELDS, FUNCTIONS, HISTOGRAMS
from cluster.dashboard.filters.grammar import OPERATORS
from cluster.dashboard.index.database import rows_of
from cluster.dashboard.index.run_index import RunIndex
from cluster.dashboard.models.episodes import (
    EpisodePage,
    Facets,
    FieldHelp,
    FilterCheck,
    FilterLanguage,
    Group,
    GroupPage,
    Histogram,
    OpenEpisode,
    OpenEpisodes,
)
from cluster.dashboard.problems import ApiError

router = APIRouter(tags=["episodes"])


@router.get("/filter-language", response_model=FilterLanguage)
def filter_language(request: Request, response: Response) -> Any:
    """Return the fields, functions and operators of filters, for completion and help."""
    fields = [
        FieldHelp(
            name=field.name,
            type=field.type,
            example=field.name if field.type == "flag" else f"{field.name}{_example(field.type)}",
            meaning=field.meaning,
            sortable=True,
            details=field.details,
        )
        for field in FIELDS.values()
    ]
    functions = [
        FieldHelp(
            name=name, type=kind, example=example, meaning=meaning, sortable=False, details=True
        )
        for name, (kind, example, meaning) in FUNCTIONS.items()
    ]
    answer = FilterLanguage(
        fields=[*fields, *functions], operators=list(OPERATORS), examples=list(EXAMPLES)
    )
    return tagged(request, response, answer)


@router.get("/runs/{run}/episodes", response_model=EpisodePage)
def list_episodes(
    index: IndexDep,
    filter_text: FilterQuery = "",
    sort: Annotated[
        str, Query(max_length=60, description="A field; with `-` before it the largest first.")
    ] = DEFAULT_SORT,
    limit: LimitQuery = 100,
    cursor: CursorQuery = "",
) -> EpisodePage:
    """Return a page of the table."""
    question = Question.of(filter_text, sort, cursor)
    snapshot = question.cursor.snapshot if question.cursor else index.episodes
    with index.cursor() as connection:
        question = replace(question, condition=_matched(connection, question.condition))
        found = rows_of(connection, *question.page(snapshot, limit))
        rows = rows_for(connection, [uid for uid, _ in found[:limit]])
        total, newer = _counted(connection, question.condition, snapshot)
    last = found[limit - 1] if len(found) > limit else None
    following = Cursor(snapshot, last[1], last[0]).text(question.asked) if last else None
    return EpisodePage(
        rows=rows,
        next=following,
        total=total,
        snapshot=snapshot,
        newer=newer,
        coverage=index.coverage,
    )


def _matched(connection: Any, condition: Compiled) -> Compiled:
    """Find once what needs details, which joins large tables, for the page and for its counts."""
    if not condition.details:
        return condition
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE matched AS SELECT e.uid AS uid FROM {condition.tables} "
        f"WHERE {condition.sql}",
        list(condition.parameters),
    )
    return Compiled("e.uid IN (SELECT uid FROM matched)")


def _counted(connection: Any, condition: Compiled, snapshot: int) -> tuple[int, int]:
    total, newer = rows_of(
        connection,
        "SELECT count(*) FILTER (e.uid < ?), count(*) FILTER (e.uid >= ?) "
        f"FROM {condition.tables} WHERE {condition.sql}",
        (snapshot, snapshot, *condition.parameters),
    )[0]
    return total, newer


@router.get("/runs/{run}/facets", response_model=Facets)
def facets(
    index: IndexDep,
    filter_text: FilterQuery = "",
    snapshot: SnapshotQuery = None,
    field: Annotated[
        list[str] | None, Query(max_length=20, description="Only these facets.")
    ] = None,
) -> Facets:
    """Count the values of the fields that are good to choose by."""
    condition = _within(compile_filter(filter_text), snapshot)
    wanted = [_known(name, FACETS) for name in field or FACETS]
    with index.cursor() as connection:
        found = [facet(connection, name, condition) for name in wanted]
        total = rows_of(
            connection,
            f"SELECT count(*) FROM {condition.tables} WHERE {condition.sql}",
            condition.parameters,
        )[0][0]
    return Facets(facets=found, total=total, coverage=index.coverage)


@router.get("/runs/{run}/histogram", response_model=Histogram)
def count_in_bins(
    index: IndexDep,
    field: Annotated[str, Query(max_length=60)] = "reward",
    filter_text: FilterQuery = "",
    snapshot: SnapshotQuery = None,
    bins: Annotated[int, Query(ge=1, le=200)] = 30,
) -> Histogram:
    """Count a number of the matching episodes in bins, for a histogram to choose a range in."""
    name = _known(field, HISTOGRAMS)
    condition = _within(compile_filter(filter_text), snapshot)
    with index.cursor() as connection:
        return histogram(connection, name, condition, bins)


@router.get("/runs/{run}/filter", response_model=FilterCheck)
def check_filter(index: IndexDep, filter_text: FilterQuery = "") -> FilterCheck:
    """Check a filter while it is typed, and count what it matches."""
    condition = compile_filter(filter_text)
    total, _ = _count(index, condition)
    return FilterCheck(filter=filter_text, needs_details=condition.details, total=total)


@router.get("/runs/{run}/open", response_model=OpenEpisodes)
def list_open(index: IndexDep, limit: LimitQuery = 100) -> OpenEpisodes:
    """Return the episodes that are in progress, or were when the run ended."""
    found = index.rows(
        "SELECT episode, attempt, grp, task, sample_index, why, count(*) OVER () FROM leases "
        "ORDER BY episode DESC LIMIT ?",
        (limit,),
    )
    names = ("episode", "attempt", "group", "task", "sample_index", "why")
    rows = [OpenEpisode(**dict(zip(names, row[:-1], strict=True))) for row in found]
    return OpenEpisodes(episodes=rows, total=found[0][-1] if found else 0)


@router.get("/runs/{run}/groups", response_model=GroupPage)
def list_groups(
    index: IndexDep,
    filter_text: FilterQuery = "",
    zero_variance: Annotated[
        bool | None, Query(description="Only groups whose rewards are all equal, or are not.")
    ] = None,
    limit: LimitQuery = 100,
    cursor: CursorQuery = "",
) -> GroupPage:
    """Return groups, the newest first; the filter chooses episodes."""
    with index.cursor() as connection:
        return group_page(connection, compile_filter(filter_text), zero_variance, limit, cursor)


@router.get("/runs/{run}/group", response_model=Group)
def group(
    index: IndexDep, id: Annotated[str, Query(max_length=500, description="Name of a group.")]
) -> Group:
    """Return a group: each sibling's turns, reward and advantage."""
    with index.cursor() as connection:
        return one_group(connection, index.files, id)


def _count(index: RunIndex, condition: Compiled) -> tuple[int, int]:
    with index.cursor() as connection:
        return _counted(connection, condition, index.episodes)


def _within(condition: Compiled, snapshot: int | None) -> Compiled:
    return condition if snapshot is None else condition.and_("e.uid < ?", snapshot)


def _known(name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        fix = f"use one of {', '.join(names)}"
        raise ApiError(422, "wrong-value", f"there is no such field: {name[:40]!r}", fix)
    return name


def _example(kind: str) -> str:
    return ">0" if kind == "number" else '="..."'
