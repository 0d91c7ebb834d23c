"""Taking episodes along: Parquet, JSON lines, or a set for SFT."""

from typing import Annotated, Literal

from fastapi import APIRouter, Body, Query
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import Field
from starlette.background import BackgroundTask

from cluster.dashboard.api.context import FilterQuery, IndexDep, LibraryDep, RunDep, SettingsDep
from cluster.dashboard.api.steering import check_writes
from cluster.dashboard.episodes.exports import episode_lines, row_lines, write_parquet
from cluster.dashboard.episodes.sft_sets import write_sft_set
from cluster.dashboard.filters.compiling import compile_filter
from cluster.dashboard.models.analysis import SftSet
from cluster.dashboard.models.shared import Answer

router = APIRouter(tags=["export"])
_PARQUET, _LINES = "application/vnd.apache.parquet", "application/x-ndjson"


@router.get(
    "/runs/{run}/export",
    response_class=StreamingResponse,
    response_model=None,
    responses={200: {"content": {_PARQUET: {}, _LINES: {}}}},
)
def export(
    run: RunDep,
    index: IndexDep,
    settings: SettingsDep,
    filter_text: FilterQuery = "",
    format: Annotated[Literal["parquet", "jsonl"], Query()] = "jsonl",
    what: Annotated[
        Literal["rows", "episodes"], Query(description="The table, or whole episodes.")
    ] = "episodes",
    tokens: Annotated[bool, Query(description="In JSON: also the columns of tokens.")] = False,
) -> StreamingResponse | FileResponse:
    """Return the matching episodes as a file."""
    condition = compile_filter(filter_text)
    name = f'attachment; filename="{run.id}.{format}"'
    if format == "parquet":
        path = write_parquet(index, condition, settings.cache, whole=what == "episodes")
        done = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(
            path, media_type=_PARQUET, headers={"content-disposition": name}, background=done
        )
    lines = (
        row_lines(index, condition)
        if what == "rows"
        else episode_lines(index, condition, tokens=tokens)
    )
    return StreamingResponse(lines, media_type=_LINES, headers={"content-disposition": name})


class SftSetWanted(Answer):
    """Which episodes become a set, and what it is called."""

    filter: str = Field(default="", max_length=4_000)
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    """Name of the new folder, beside the run's own."""
    only_correct: bool = True
    """Whether episodes with a wrong answer are left out."""


@router.post("/runs/{run}/sft-set", response_model=SftSet)
def make_sft_set(
    library: LibraryDep,
    run: RunDep,
    index: IndexDep,
    settings: SettingsDep,
    wanted: Annotated[SftSetWanted, Body()],
) -> SftSet:
    """Write the matching episodes as a collection, which `trialrun sft --from` takes."""
    check_writes(settings)
    condition = compile_filter(wanted.filter)
    made = write_sft_set(run, index, condition, wanted.name, only_correct=wanted.only_correct)
    library.look_again()
    return made
