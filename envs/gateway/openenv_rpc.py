"""The JSON-RPC that OpenEnv's tool client posts to `/mcp`, or sends over its WebSocket.

Methods: openenv/session/create, openenv/session/close, tools/list, tools/call; `params.session_id`
names the environment, the one of the WebSocket where it is missing.
"""

from typing import Protocol

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from envs.gateway.openenv_episode import OpenEnvEpisode, OpenEnvError, TaskShelf
from envs.remote.openenv_wire import (
    CallToolAction,
    CallToolObservation,
    ListToolsAction,
    RpcRequest,
    ToolOffer,
    first_fault,
)
from envs.tools import JsonObject

_MAX_BODY_BYTES = 4 * 2**20
_PARSE_ERROR, _INVALID_REQUEST, _METHOD_NOT_FOUND = -32_700, -32_600, -32_601
_INVALID_PARAMS, _SERVER_ERROR = -32_602, -32_000
_NOT_CALLABLE = ("tool_not_found", "invalid_args")


class Seats(Protocol):
    """The environments that requests are about."""

    shelf: TaskShelf

    def enter(self) -> str: ...
    def episode(self, session_id: str) -> OpenEnvEpisode: ...
    def leave(self, session_id: str) -> bool: ...


class _RpcError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class OpenEnvRpc:
    """An ASGI app for POST requests; `answer` serves the same methods elsewhere."""

    def __init__(self, seats: Seats) -> None:
        self._seats = seats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with status 200 whatever the request says, as OpenEnv's servers do."""
        try:
            response = await self._respond(Request(scope, receive))
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _MAX_BODY_BYTES:
                message = f"expected a body of at most {_MAX_BODY_BYTES} bytes"
                return JSONResponse(_error(None, _INVALID_REQUEST, message), 413)
        try:
            message = RpcRequest.model_validate_json(bytes(body))
        except ValidationError as error:
            kind = error.errors(include_url=False, include_input=False)[0]["type"]
            code = _PARSE_ERROR if kind == "json_invalid" else _INVALID_REQUEST
            return JSONResponse(_error(None, code, first_fault(error)))
        return JSONResponse(await self.answer(message, None))

    async def answer(self, request: RpcRequest, own_session: str | None) -> JsonObject:
        """Return the JSON-RPC response; `own_session` is that of the WebSocket it came over."""
        try:
            result = await self._result(request, own_session)
        except _RpcError as error:
            return _error(request.id, error.code, error.message)
        except OpenEnvError as error:
            return _error(request.id, _SERVER_ERROR, f"{error.code}: {error.message}")
        return {"jsonrpc": "2.0", "id": request.id, "result": result}

    async def _result(self, request: RpcRequest, own_session: str | None) -> JsonObject:
        session_id = request.params.get("session_id", own_session)
        if session_id is not None and not isinstance(session_id, str):
            raise _RpcError(_INVALID_PARAMS, "session_id: expected a string")
        match request.method:
            case "openenv/session/create":
                return {"session_id": own_session or self._seats.enter()}
            case "openenv/session/close":
                return self._close(session_id, own_session)
            case "tools/list":
                return await self._list(session_id)
            case "tools/call":
                return await self._call(session_id, request.params)
            case unknown:
                raise _RpcError(_METHOD_NOT_FOUND, f"no method {unknown[:80]!r}")

    def _close(self, session_id: str | None, own_session: str | None) -> JsonObject:
        if session_id is None or session_id == own_session:
            raise _RpcError(_INVALID_PARAMS, "session_id: expected that of another session")
        if not self._seats.leave(session_id):
            raise _RpcError(_INVALID_PARAMS, f"session {session_id[:80]!r} is not open")
        return {"session_id": session_id, "closed": True}

    async def _list(self, session_id: str | None) -> JsonObject:
        if session_id is None:
            tools = self._seats.shelf.tasks[0].tool_set.tools
            return {"tools": [ToolOffer.of(tool).model_dump(mode="json") for tool in tools]}
        episode = self._seats.episode(session_id)
        listed = await episode.step(ListToolsAction(type="list_tools"))
        return listed.observation.model_dump(mode="json")

    async def _call(self, session_id: str | None, params: JsonObject) -> JsonObject:
        if session_id is None:
            raise _RpcError(_INVALID_PARAMS, "session_id: expected one; tools keep state")
        try:
            action = CallToolAction.model_validate(
                {
                    "type": "call_tool",
                    "tool_name": params.get("name"),
                    "arguments": params.get("arguments", {}),
                }
            )
        except ValidationError as error:
            raise _RpcError(_INVALID_PARAMS, first_fault(error)) from error
        result = await self._seats.episode(session_id).step(action)
        observation = result.observation
        assert isinstance(observation, CallToolObservation)
        fault = observation.error
        if fault:
            code = _INVALID_PARAMS if fault.error_type in _NOT_CALLABLE else _SERVER_ERROR
            raise _RpcError(code, f"{fault.error_type}: {fault.message}")
        return {"data": observation.result}


def _error(request_id: str | int | None, code: int, message: str) -> JsonObject:
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}
