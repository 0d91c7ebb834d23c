"""The tool server's web app: routes, token, typed errors, and the OpenAPI document of these."""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from envs.server.guard import EVERY_HOST, Hosts, RequestGuard, error_response
from envs.server.metrics import ToolMetrics
from envs.server.routes import PROMETHEUS_TEXT, Refusal, ToolRoutes
from envs.server.session_host import SessionHost
from envs.server.wire import (
    JSON,
    MSGPACK,
    CallItem,
    CallRequest,
    CallResponse,
    CallResult,
    CloseRequest,
    CloseResponse,
    EncodedCall,
    ErrorResponse,
    Health,
    OpenItem,
    OpenRequest,
    OpenResponse,
    WireError,
)
from envs.tools import ToolSet, ToolSpec

_REFERENCE = "#/components/schemas/{model}"
_EXAMPLE_TOOLS = ToolSet(
    tools=(ToolSpec(name="add", description="Add one.", parameters={"type": "object"}),),
    sources=("def add(n=1):\n    return n + 1",),
    functions=("add",),
)
_OPEN_EXAMPLE = OpenRequest(
    sessions=(OpenItem(digest=_EXAMPLE_TOOLS.digest, seed=1, purpose="trial"),),
    tool_sets={_EXAMPLE_TOOLS.digest: _EXAMPLE_TOOLS},
)
_CALL_EXAMPLE = CallRequest(
    items=(CallItem(session="0a1b", calls=(EncodedCall(name="add", arguments='{"n": 2}'),)),)
)
_CLOSE_EXAMPLE = CloseRequest(ids=("0a1b",))
_REQUESTS = (OpenRequest, CallRequest, CloseRequest)


def create_app(
    host: SessionHost,
    token: str,
    routers: Sequence[APIRouter] = (),
    metrics: ToolMetrics | None = None,
    hosts: Hosts = EVERY_HOST,
) -> FastAPI:
    """Return the app of a host, which the caller starts.

    `routers` serve further protocols on the same sessions, behind the same guard. `hosts` are the
    names under which the app answers: `hosts_of` its listener, if it has one. `metrics` must
    observe the host; without it, `/metrics` shows only the host's own numbers.
    """
    app = _ToolApp(title="trialrun tool server", docs_url=None, redoc_url=None)
    routes = ToolRoutes(host, metrics or ToolMetrics())
    for path, endpoint, example, gives, errors in (
        ("/sessions", routes.open_sessions, _OPEN_EXAMPLE, OpenResponse, (409, 503)),
        ("/calls", routes.call_tools, _CALL_EXAMPLE, CallResponse, (404, 503)),
        ("/sessions/close", routes.close_sessions, _CLOSE_EXAMPLE, CloseResponse, ()),
    ):
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            response_model=None,
            responses=_responses({200: gives}, (400, 401, 403, 408, 413, 415, 421, *errors)),
            openapi_extra={"requestBody": _request_body(example)},
        )
    app.add_api_route(
        "/sessions/{session_id}",
        routes.close_session,
        methods=["DELETE"],
        status_code=204,
        responses=_responses({}, (401, 403, 404, 421)),
    )
    app.add_api_route(
        "/health",
        routes.health,
        methods=["GET"],
        response_model=None,
        responses=_responses({200: Health, 503: Health}, (401, 403, 421)),
    )
    app.add_api_route(
        "/metrics",
        routes.metrics,
        methods=["GET"],
        response_class=_MetricsText,
        responses=_responses({}, (401, 403, 421)),
    )
    app.add_api_websocket_route("/stream", routes.stream)
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(Refusal, _refuse)
    app.add_exception_handler(HTTPException, _refuse_request)
    app.add_middleware(RequestGuard, token=token, hosts=hosts)
    return app


class _MetricsText(Response):
    media_type = PROMETHEUS_TEXT


class _ToolApp(FastAPI):
    def openapi(self) -> dict[str, object]:
        """Return the document, completed with the bodies that the routes parse themselves."""
        document = super().openapi()
        _, bodies = models_json_schema(
            [(model, "validation") for model in (*_REQUESTS, CallResult)],
            ref_template=_REFERENCE,
        )
        for way in ("endpoint", "adaptation"):  # kinds of tool set that a tool server refuses
            del bodies["$defs"]["ToolSet"]["properties"][way]
        document.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
        return document


def _request_body(example: BaseModel) -> dict[str, object]:
    schema = {"$ref": _REFERENCE.format(model=type(example).__name__)}
    sent = example.model_dump(mode="json", exclude_unset=True)
    content = {JSON: {"schema": schema, "example": sent}, MSGPACK: {"schema": schema}}
    return {"required": True, "content": content}


def _responses(
    answers: dict[int, type[BaseModel]], errors: Sequence[int]
) -> dict[int | str, dict[str, object]]:
    models = answers | dict.fromkeys(errors, ErrorResponse)
    return {status: {"model": model} for status, model in models.items()}


async def _refuse(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return error_response(refusal.error)


async def _refuse_request(request: Request, error: Exception) -> Response:
    """Answer what FastAPI's router refuses; errors of other routers pass unchanged."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404 and error.detail == "Not Found":
        return error_response(
            WireError(kind="not_found", message=f"no route {where}; see /openapi.json")
        )
    if error.status_code == 405:
        refused = WireError(
            kind="method_not_allowed", message=f"no method {where}; see /openapi.json"
        )
        response = error_response(refused)
        response.headers.update(error.headers or {})
        return response
    return await http_exception_handler(request, error)
