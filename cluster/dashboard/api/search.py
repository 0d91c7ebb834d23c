"""Search over texts: lines of JSON that arrive as they are found."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from cluster.dashboard.api.context import FilterQuery, IndexDep
from cluster.dashboard.episodes.searching import Search, Wanted, check_groups
from cluster.dashboard.filters.compiling import check_pattern, compile_filter
from cluster.dashboard.models.episodes import SearchHit, SearchProgress
from cluster.dashboard.problems import ApiError

router = APIRouter(tags=["search"])
NDJSON = "application/x-ndjson"


@router.get(
    "/runs/{run}/search",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Lines of JSON: `SearchHit` and `SearchProgress`, told apart by `type`. "
            "Closing the connection ends the search.",
            "content": {
                NDJSON: {
                    "schema": {
                        "anyOf": [SearchHit.model_json_schema(), SearchProgress.model_json_schema()]
                    }
                }
            },
        }
    },
)
def search(
    index: IndexDep,
    q: Annotated[str, Query(min_length=1, max_length=500, description="What to look for.")],
    filter_text: FilterQuery = "",
    pattern: Annotated[bool, Query(description="Whether q is a regular expression (RE2).")] = False,
    case: Annotated[bool, Query(description="Whether capitals matter.")] = False,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 500,
) -> StreamingResponse:
    """Look through questions, turns, arguments, results, answers and errors."""
    if pattern:
        check_pattern(q)
        if not check_groups(q):
            fix = "write (...) or (?:...) instead"
            raise ApiError(400, "bad-pattern", "named groups are not offered", fix)
    wanted = Wanted(text=q, pattern=pattern, ignore_case=not case, limit=limit)
    found = Search(index, wanted, compile_filter(filter_text))

    def lines() -> Iterator[bytes]:
        for line in found.lines():
            yield line.model_dump_json().encode() + b"\n"

    return StreamingResponse(lines(), media_type=NDJSON)
