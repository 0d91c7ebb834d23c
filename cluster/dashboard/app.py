"""The dashboard's web app: the API below `/api/v1`, `/metrics`, and the pages' files."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from cluster.dashboard.api import (
    comparison,
    episode,
    episodes,
    export,
    figures,
    live,
    prometheus,
    runs,
    search,
    session,
    steering,
)
from cluster.dashboard.index.library import Library
from cluster.dashboard.models.shared import Problem
from cluster.dashboard.problems import PROBLEM_JSON, install_handlers, methods_of, not_found
from cluster.dashboard.security.guard import Guard
from cluster.dashboard.settings import Settings

STATIC = Path(__file__).parent / "static"
_ROUTERS = (
    *(session, runs, episodes, episode, figures, comparison),
    *(search, export, steering, live),
)
_PROBLEM = {
    "description": "A problem (RFC 9457) with what to do about it",
    "content": {PROBLEM_JSON: {"schema": Problem.model_json_schema()}},
}


def create_app(settings: Settings) -> ASGIApp:
    """Return the guarded app; its lifespan opens and closes the indexes."""
    return Guard(create_open_app(settings), settings)


def create_open_app(settings: Settings) -> FastAPI:
    """Return the app without the guard; `create_app` is what a server runs."""
    library = Library(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        library.start()
        try:
            yield
        finally:
            library.close()

    app = FastAPI(
        title="trialrun dashboard",
        version=settings.version,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        lifespan=lifespan,
        responses={code: _PROBLEM for code in (400, 401, 403, 404, 405, 409, 421, 422, 501, 503)},
    )
    app.state.settings = settings
    app.state.library = library
    install_handlers(app)
    for module in _ROUTERS:
        app.include_router(module.router, prefix="/api/v1")
    app.include_router(prometheus.router)
    _serve_pages(app)
    return app


def _serve_pages(app: FastAPI) -> None:
    """Serve the files of `static/`; any other path is a page, whose script reads the address."""
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    @app.get("/{path:path}", include_in_schema=False)
    def page(request: Request, path: str = "") -> FileResponse:
        if path.startswith("api/"):
            if methods_of(request):
                raise HTTPException(405)
            raise not_found(f"there is no route /{path[:100]}", "see /api/v1/openapi.json")
        return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8")
