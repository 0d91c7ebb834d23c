"""The JSON-RPC that OpenEnv's tool client posts to `/mcp`, or sends over its WebSocket.

The methods are openenv/session/create, openenv/session/close, tools/list and tools/call.
`params.session_id` names the environment; over a WebSocket the default is that WebSocket's own.
"""

import asyncio
from typing import Protocol

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from envs.gateway.openenv_episode import OpenEnvEpisode, OpenEnvError, TaskPool
from envs.gateway.rpc_body import NoJson, read_rpc
from envs.remote.openenv_wire import (
    CallToolAction,
    CallToolObservation,
    ListToolsAction,
    RpcRequest,
    ToolListing,
)
from envs.server.incoming import BIG_BYTES
from envs.server.shapes import first_complaint
from envs.tools import JsonObject

_MAX_BODY_BYTES = 4 * 2**20
_PARSE_ERROR, _INVALID_REQUEST, _METHOD_NOT_FOUND = -32_700, -32_600, -32_601
_INVALID_PARAMS, _SERVER_ERROR = -32_602, -32_000
_NOT_CALLABLE = ("tool_not_found", "invalid_args")


class EnvironmentSessions(Protocol):
    """The open environments, by session id. The methods raise OpenEnvError."""

    task_pool: TaskPool

    def open_session(self) -> str: ...
    def episode(self, session_id: str) -> OpenEnvEpisode: ...
    def close_session(self, session_id: str) -> bool: ...


class _RpcError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class OpenEnvRpc:
    """An ASGI app for POST requests; `answer` serves the same methods over a WebSocket."""

    def __init__(self, sessions: EnvironmentSessions) -> None:
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with status 200 even for a failed request, as OpenEnv's servers do."""
        try:
            response = await self._respond(Request(scope, receive))
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        body = await request.body()
        if len(body) > _MAX_BODY_BYTES:
            message = f"expected a body of at most {_MAX_BODY_BYTES} bytes"
            return JSONResponse(_error(None, _INVALID_REQUEST, message), 413)
        try:
            if len(body) <= BIG_BYTES:
                content = read_rpc(body)
            else:
                content = await asyncio.to_thread(read_rpc, body)
            message = RpcRequest.model_validate(content)
        except NoJson as error:
            return JSONResponse(_error(None, _PARSE_ERROR, str(error)))
        except ValidationError as error:
            fault = first_complaint(error, "message")
            return JSONResponse(_error(None, _INVALID_REQUEST, fault))
        except ValueError as error:
            return JSONResponse(_error(None, _INVALID_REQUEST, str(error)))
        return JSONResponse(await self.answer(message, None))

    async def answer(self, request: RpcRequest, own_session: str | None) -> JsonObject:
        """Return the JSON-RPC response; `own_session` is the session of the WebSocket, if any."""
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
            raise _RpcError(
                _INVALID_PARAMS, f"session_id: expected a string, found {type(session_id).__name__}"
            )
        match request.method:
            case "openenv/session/create":
                return {"session_id": own_session or self._sessions.open_session()}
            case "openenv/session/close":
                return self._close(session_id, own_session)
            case "tools/list":
                return await self._list(session_id)
            case "tools/call":
                return await self._call(session_id, request.params)
            case unknown:
                raise _RpcError(
                    _METHOD_NOT_FOUND,
                    f"no method {unknown[:80]!r}; methods are openenv/session/create, "
                    "openenv/session/close, tools/list and tools/call",
                )

    def _close(self, session_id: str | None, own_session: str | None) -> JsonObject:
        if session_id is None or session_id == own_session:
            raise _RpcError(
                _INVALID_PARAMS, "session_id: expected the id of another session than this one"
            )
        if not self._sessions.close_session(session_id):
            raise _RpcError(_INVALID_PARAMS, f"session {session_id[:80]!r} is not open")
        return {"session_id": session_id, "closed": True}

    async def _list(self, session_id: str | None) -> JsonObject:
        if session_id is None:
            tools = self._sessions.task_pool.tasks[0].tool_set.tools
            return {"tools": [ToolListing.of(tool).model_dump(mode="json") for tool in tools]}
        episode = self._sessions.episode(session_id)
        listed = await episode.step(ListToolsAction(type="list_tools"))
        return listed.observation.model_dump(mode="json")

    async def _call(self, session_id: str | None, params: JsonObject) -> JsonObject:
        if session_id is None:
            raise _RpcError(
                _INVALID_PARAMS,
                "session_id: expected one, because tools keep state: create a session",
            )
        try:
            action = CallToolAction.model_validate(
                {
                    "type": "call_tool",
                    "tool_name": params.get("name"),
                    "arguments": params.get("arguments", {}),
                }
            )
        except ValidationError as error:
            raise _RpcError(_INVALID_PARAMS, first_complaint(error, "message")) from error
        result = await self._sessions.episode(session_id).step(action)
        observation = result.observation
        assert isinstance(observation, CallToolObservation)
        fault = observation.error
        if fault:
            code = _INVALID_PARAMS if fault.error_type in _NOT_CALLABLE else _SERVER_ERROR
            raise _RpcError(code, f"{fault.error_type}: {fault.message}")
        return {"data": observation.result}


def _error(request_id: str | int | None, code: int, message: str) -> JsonObject:
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}
