"""Errors of the API as RFC 9457 describes them: each says what to do."""

import logging
from dataclasses import dataclass
from typing import Any, cast

import duckdb
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match

from cluster.dashboard.models.shared import Problem
from envs.errors import ConfigError, DeadlineError, MissingError, StoreError, TrialrunError

PROBLEM_JSON = "application/problem+json"
_LONGEST = 2_000
"""Characters of a detail: a request could put anything into it."""
logger = logging.getLogger("trialrun.dashboard")


@dataclass(frozen=True, slots=True)
class Place:
    """Which part of a filter is wrong, and what was probably meant."""

    position: int
    length: int
    suggestions: tuple[str, ...] = ()


class ApiError(TrialrunError):
    """An answer that is an error; `code` is stable between versions."""

    def __init__(
        self, status: int, code: str, detail: str, fix: str, place: Place | None = None
    ) -> None:
        super().__init__(status, code, detail, fix, place)
        self.status = status
        self.code = code
        self.detail = detail
        self.fix = fix
        self.place = place

    def __str__(self) -> str:
        return f"{self.detail}: {self.fix}"


def not_found(what: str, fix: str) -> ApiError:
    """Return the error for something that is not there."""
    return ApiError(404, "not-found", what, fix)


_TITLES = {
    400: "The request cannot be understood",
    401: "Not signed in",
    403: "Not allowed",
    404: "Not found",
    405: "The method is not offered here",
    409: "The run's state does not allow it",
    413: "The request is too large",
    421: "Unknown host",
    422: "A value is wrong",
    500: "The dashboard failed",
    501: "Not built yet",
    503: "Not ready",
    504: "No answer in time",
}


def problem_response(error: ApiError, instance: str) -> JSONResponse:
    """Return the HTTP response of an error."""
    place = error.place
    body = Problem(
        type=f"urn:trialrun:problem:{error.code}",
        title=_TITLES.get(error.status, "Error"),
        status=error.status,
        detail=error.detail[:_LONGEST],
        fix=error.fix[:_LONGEST],
        code=error.code,
        instance=instance[:_LONGEST],
        position=place.position if place else None,
        length=place.length if place else None,
        suggestions=list(place.suggestions) if place else [],
    )
    content = body.model_dump(mode="json", exclude_none=True)
    return JSONResponse(content, error.status, media_type=PROBLEM_JSON)


def install_handlers(app: FastAPI) -> None:
    """Make every error of `app` a problem."""
    app.add_exception_handler(TrialrunError, _of_ours)
    app.add_exception_handler(HTTPException, _of_starlette)
    app.add_exception_handler(RequestValidationError, _of_values)
    app.add_exception_handler(duckdb.OutOfMemoryException, _of_memory)
    app.add_exception_handler(Exception, _of_a_bug)


async def _of_ours(request: Request, error: Exception) -> JSONResponse:
    return problem_response(as_api_error(cast(TrialrunError, error)), request.url.path)


def as_api_error(error: TrialrunError) -> ApiError:
    """Return an error of the tree as an answer."""
    match error:
        case ApiError():
            return error
        case MissingError():
            return ApiError(404, "not-found", str(error), "check the name, or list the runs")
        case ConfigError():
            return ApiError(422, "wrong-value", str(error), "change the value that is named")
        case DeadlineError():
            return ApiError(504, "no-answer", str(error), "try again, or look at the run's log")
        case StoreError():
            fix = "see /health of the run: everything that is whole is shown"
            return ApiError(409, "damaged", str(error), fix)
        case _:
            return ApiError(500, "failed", str(error), "see the dashboard's own output")


async def _of_starlette(request: Request, error: Exception) -> JSONResponse:
    found = cast(HTTPException, error)
    fix = "see /api/v1/openapi.json for what is offered"
    api_error = ApiError(found.status_code, "http", str(found.detail), fix)
    response = problem_response(api_error, request.url.path)
    response.headers.update(found.headers or {})
    if found.status_code == 405:
        response.headers["allow"] = ", ".join(methods_of(request))
    return response


def methods_of(request: Request) -> list[str]:
    """Return the methods that a path has: each is a route of its own, which knows no other."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            matches, _ = route.matches(request.scope)
            found |= route.methods if matches is not Match.NONE else set()
    return sorted(found)


async def _of_values(request: Request, error: Exception) -> JSONResponse:
    found = cast(RequestValidationError, error)
    said = "; ".join(_described(item) for item in found.errors()[:4])
    fix = "see /api/v1/openapi.json for the parameters and their types"
    return problem_response(ApiError(422, "wrong-value", said, fix), request.url.path)


def _described(item: Any) -> str:
    where = ".".join(str(part) for part in item.get("loc", ()))
    return f"{where}: {item.get('msg', 'wrong')}"


async def _of_memory(request: Request, error: Exception) -> JSONResponse:
    fix = "narrow the filter, or start the dashboard with a larger --memory"
    detail = f"the index's database needs more memory: {error}"
    return problem_response(ApiError(503, "memory", detail, fix), request.url.path)


async def _of_a_bug(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    fix = "this is a fault of the dashboard; its own output has the traceback"
    detail = f"{type(error).__name__} while answering"
    return problem_response(ApiError(500, "failed", detail, fix), request.url.path)
