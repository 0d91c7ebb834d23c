"""What routes get of a request: the library, a run, its index."""

import hashlib
import json
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Path, Query, Request, Response
from pydantic import BaseModel

from cluster.dashboard.index.library import KnownRun, Library
from cluster.dashboard.index.run_index import RunIndex
from cluster.dashboard.problems import ApiError
from cluster.dashboard.settings import Settings

Model = TypeVar("Model", bound=BaseModel)


def _library(request: Request) -> Library:
    return request.app.state.library


LibraryDep = Annotated[Library, Depends(_library)]


def _settings(request: Request) -> Settings:
    return request.app.state.settings


SettingsDep = Annotated[Settings, Depends(_settings)]

RunPath = Annotated[str, Path(description="Id of a run, of `/runs`.", max_length=120)]


def _run(library: LibraryDep, run: RunPath) -> KnownRun:
    return library.run(run)


RunDep = Annotated[KnownRun, Depends(_run)]


def _index(library: LibraryDep, run: RunPath) -> RunIndex:
    return library.index(run)


IndexDep = Annotated[RunIndex, Depends(_index)]

FilterQuery = Annotated[
    str,
    Query(alias="filter", max_length=4_000, description="A filter; see `/filter-language`."),
]
SnapshotQuery = Annotated[
    int | None,
    Query(ge=0, le=2**53, description="Count only episodes of this snapshot; see `EpisodePage`."),
]
CursorQuery = Annotated[str, Query(max_length=4_000, description="`next` of the page before.")]
LimitQuery = Annotated[int, Query(ge=1, le=500, description="Rows of a page.")]
EpisodeQuery = Annotated[str, Query(alias="id", max_length=500, description="Id of an episode.")]
AttemptQuery = Annotated[
    int | None, Query(ge=0, le=10**6, description="Default: the newest stored attempt.")
]


def tagged(request: Request, response: Response, answer: Model) -> Model | Response:
    """Return `answer` with an ETag, or 304 where the caller has it already."""
    content = answer.model_dump_json().encode()
    tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"etag": tag})
    return Response(content, media_type="application/json", headers={"etag": tag})


def json_object(text: str, what: str) -> dict[str, Any]:
    """Return JSON text as an object. Raises ApiError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ApiError(400, "bad-cursor", f"{what} cannot be read", "start again without it")
    return found
