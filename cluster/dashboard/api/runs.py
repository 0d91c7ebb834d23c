"""Runs as a whole: the list, overview, metrics, logs, configuration, and what is damaged."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from cluster.dashboard.api.context import (
    IndexDep,
    LibraryDep,
    LimitQuery,
    RunDep,
    SettingsDep,
    tagged,
)
from cluster.dashboard.figures.logs import LogFile, log_page
from cluster.dashboard.figures.metric_series import series_of
from cluster.dashboard.figures.overview import bottleneck_of, charts_of, outcomes_of
from cluster.dashboard.figures.recipes import recipe_of
from cluster.dashboard.figures.studies import find_studies
from cluster.dashboard.figures.summaries import summary_of
from cluster.dashboard.filters.compiling import check_pattern
from cluster.dashboard.models.runs import (
    ConfigAnswer,
    Health,
    LogPage,
    MetricsAnswer,
    Overview,
    RunList,
    RunSummary,
)

router = APIRouter(tags=["runs"])
_MOST_RUNS = 20


@router.get("/runs", response_model=RunList)
def list_runs(
    request: Request, response: Response, library: LibraryDep, settings: SettingsDep
) -> Any:
    """Return every run below the dashboard's directories."""
    answer = RunList(
        runs=[summary_of(run) for run in library.runs()],
        roots=[str(root) for root in settings.roots],
        studies=[study.id for study in find_studies(library)],
    )
    return tagged(request, response, answer)


@router.get("/runs/{run}", response_model=RunSummary)
def one_run(request: Request, response: Response, run: RunDep) -> Any:
    """Return the row of one run."""
    return tagged(request, response, summary_of(run))


@router.get("/runs/{run}/overview", response_model=Overview)
def overview(request: Request, response: Response, run: RunDep, index: IndexDep) -> Any:
    """Return the charts, the outcomes, and what holds the run up."""
    steps = run.facts.steps()
    with index.cursor() as connection:
        answer = Overview(
            run=summary_of(run),
            bottleneck=bottleneck_of(steps, connection),
            charts=charts_of(steps, connection),
            outcomes=outcomes_of(connection),
            coverage=index.coverage,
        )
    return tagged(request, response, answer)


@router.get("/runs/{run}/health", response_model=Health)
def health(run: RunDep, index: IndexDep) -> Health:
    """Return what could not be read of a run, and how far its index is."""
    problems = [*run.facts.damage.values(), *index.damage]
    return Health(problems=problems, coverage=index.coverage, index_folder=index.folder)


@router.get("/runs/{run}/metrics", response_model=MetricsAnswer)
def metrics(
    request: Request,
    response: Response,
    run: RunDep,
    name: Annotated[
        list[str] | None, Query(max_length=200, description="Only these metrics.")
    ] = None,
) -> Any:
    """Return metrics by step, each with its unit and meaning."""
    answer = MetricsAnswer(run=run.id, series=series_of(run.facts.steps(), name or ()))
    return tagged(request, response, answer)


@router.get("/runs/{run}/logs", response_model=LogPage)
def logs(
    library: LibraryDep,
    run: RunDep,
    pattern: Annotated[
        str, Query(max_length=500, description="A regular expression (RE2), ignoring case.")
    ] = "",
    before: Annotated[int | None, Query(ge=1, le=2**53)] = None,
    also: Annotated[
        list[str] | None, Query(max_length=_MOST_RUNS, description="Runs to merge by time.")
    ] = None,
    limit: LimitQuery = 200,
) -> LogPage:
    """Return the newest lines of what the run's commands printed."""
    check_pattern(pattern)
    runs = [run, *(library.run(other) for other in also or () if other != run.id)]
    files = [LogFile(known.layout.log, f"{known.name}/log.txt") for known in runs]
    return log_page(files, pattern, before, limit)


@router.get("/runs/{run}/config", response_model=ConfigAnswer)
def config(request: Request, response: Response, run: RunDep) -> Any:
    """Return the recipe of each attempt and what differs between them."""
    return tagged(request, response, recipe_of(run.facts))
