"""Evaluations, comparisons of several, and studies."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from cluster.dashboard.api.context import IndexDep, LibraryDep, RunDep, tagged
from cluster.dashboard.figures.evaluations import Compared, comparison_of, evaluation_of
from cluster.dashboard.figures.studies import one_study
from cluster.dashboard.models.analysis import Compare, Evaluation
from cluster.dashboard.models.runs import Study
from cluster.dashboard.problems import ApiError

router = APIRouter(tags=["evaluation"])
_MOST_SIDES = 8
_By = Annotated[
    list[str] | None,
    Query(max_length=8, description="Tags to make rows of; default: those with 2 to 8 values."),
]


@router.get("/runs/{run}/evaluation", response_model=Evaluation)
def evaluation(
    request: Request, response: Response, run: RunDep, index: IndexDep, by: _By = None
) -> Any:
    """Return the tables of an evaluation with errors over tasks and pass@k, complete or not."""
    return tagged(request, response, evaluation_of(run, index, by or ()))


@router.get("/compare", response_model=Compare)
def compare(
    request: Request,
    response: Response,
    library: LibraryDep,
    run: Annotated[
        list[str], Query(min_length=2, max_length=_MOST_SIDES, description="Runs, in order.")
    ],
    by: _By = None,
) -> Any:
    """Compare evaluations task by task: paired differences, and the tasks won and lost."""
    if len(set(run)) < len(run):
        raise ApiError(422, "wrong-value", "a run is named twice", "name different runs")
    sides = [Compared(library.run(name), library.index(name)) for name in run]
    for side in sides:
        found = side.index.coverage
        if not found.complete:
            detail = f"{found.details} of {found.episodes} episodes of {side.run.name} are read"
            raise ApiError(503, "indexing", detail, "ask again in some seconds")
    return tagged(request, response, comparison_of(sides, by or ()))


@router.get("/studies/{study}", response_model=Study)
def study(
    request: Request,
    response: Response,
    library: LibraryDep,
    study: Annotated[str, Path(max_length=120)],
) -> Any:
    """Return a study's table; each cell names the runs whose episodes it is made of."""
    return tagged(request, response, one_study(library, study))
