"""MCP over streamable HTTP: each MCP session is one tool session of the server's host.

`/mcp` serves the first tool set, `/mcp/{name}` the one with that name. The query parameters
`purpose` (`execution` or `trial`) and `seed` apply to the tool session. The first call opens it. It
ends with the MCP session (DELETE), or after it was idle for too long. Tools keep state, so MCP
revisions without sessions are refused, in the way that makes clients fall back to one with
sessions. The server sends no messages on its own, so it answers GET with 405, as MCP specifies.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    PARSE_ERROR,
    UNSUPPORTED_PROTOCOL_VERSION,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
)
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from envs.config import ToolServerConfig
from envs.gateway.call_check import fault_of
from envs.gateway.mcp_session_limit import McpSessionLimit
from envs.gateway.rpc_body import NoJson, read_rpc
from envs.server.guard import replayed
from envs.server.incoming import BIG_BYTES
from envs.server.session_host import SessionHost, run_to_completion
from envs.server.wire import CallItem, EncodedCall, OpenItem
from envs.tools import AnswerStatus, SessionPurpose, ToolSet, ToolSpec

TOOL_SERVER_ERROR = -32_000
"""JSON-RPC code of failures that the caller did not cause; `data.kind` has the kind."""
_LARGEST_SEED = 2**63


@dataclass(frozen=True, slots=True)
class _SessionSpec:
    """The tool session that the URL of a request names."""

    tool_set: ToolSet
    purpose: SessionPurpose
    seed: int


class McpGateway:
    """The MCP routes of one host; they work while the context `serving()` is open.

    `tool_sets` maps the names in URLs to tool sets; the first set is the default. POST requests
    that do not accept an event stream are not streamable HTTP; they go to `plain_rpc` if it is
    given.
    """

    def __init__(
        self,
        host: SessionHost,
        tool_sets: Mapping[str, ToolSet],
        config: ToolServerConfig,
        plain_rpc: ASGIApp | None = None,
    ) -> None:
        """Set up the routes."""
        self._host = host
        self._tool_sets = tool_sets
        self._deadline_s = config.request_timeout_s + config.call_timeout_s
        self._plain_rpc = plain_rpc
        self._sessions: dict[str, asyncio.Future[str]] = {}
        self._tools: dict[str, tuple[ToolSpec, ...]] = {}
        """Tools of MCP sessions in which calls have changed them."""
        server = Server(
            "trialrun",
            version=version("trialrun"),
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
        )
        self._manager = StreamableHTTPSessionManager(
            server,
            json_response=True,
            session_idle_timeout=config.session_idle_s,
            max_sessions=config.max_sessions,
        )
        self._session_limit = McpSessionLimit(
            self._manager.handle_request, config.max_sessions, config.session_idle_s
        )
        self.router = APIRouter()
        for path in ("/mcp", "/mcp/{name:path}"):
            self.router.routes.append(Route(path, _Endpoint(self._serve), include_in_schema=False))

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while the context is open; end every session when it closes."""
        async with self._manager.run():
            yield
        for mcp_id in list(self._sessions):
            self._end(mcp_id)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        refusal = self._refusal(request)
        streams = "text/event-stream" in request.headers.get("accept", "")
        if request.method == "POST" and not streams and self._plain_rpc:
            await self._plain_rpc(scope, receive, send)
        elif refusal:
            await refusal(scope, receive, send)
        elif request.method == "GET":
            silent = _error(
                405, INVALID_REQUEST, "the server sends no messages on its own: use POST"
            )
            await silent(scope, receive, send)
        elif request.method == "POST":
            await self._post(request, scope, receive, send)
        else:
            await self._manager.handle_request(scope, receive, self._watch_end(request, send))

    async def _post(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a message on that the library can read quickly, and answer others."""
        body = await Request(scope, receive).body()
        try:
            if len(body) <= BIG_BYTES:
                read_rpc(body)
            else:
                await asyncio.to_thread(read_rpc, body)
        except ValueError as error:
            code = PARSE_ERROR if isinstance(error, NoJson) else INVALID_REQUEST
            await _error(400, code, str(error))(scope, receive, send)
            return
        mcp_id = request.headers.get(MCP_SESSION_ID_HEADER)
        if mcp_id is None:
            await self._session_limit.make_room(self._sessions.keys())
            send = self._session_limit.taking(send)
        else:
            self._session_limit.used(mcp_id)
        await self._manager.handle_request(scope, replayed(body, receive), send)

    def _refusal(self, request: Request) -> JSONResponse | None:
        revision = request.headers.get("mcp-protocol-version")
        if revision is not None and revision not in HANDSHAKE_PROTOCOL_VERSIONS:
            details = {"supported": list(HANDSHAKE_PROTOCOL_VERSIONS), "requested": revision}
            message = "expected a protocol version with sessions, because the tools keep state"
            return _error(400, UNSUPPORTED_PROTOCOL_VERSION, message, details)
        try:
            self._select(request)
        except LookupError as error:
            return _error(404, INVALID_PARAMS, str(error.args[0]))
        except ValueError as error:
            return _error(400, INVALID_PARAMS, str(error))
        return None

    def _select(self, request: Request) -> _SessionSpec:
        """Parse the URL. Raises LookupError (no such tool set) or ValueError."""
        name = request.path_params.get("name") or next(iter(self._tool_sets))
        tool_set = self._tool_sets.get(name)
        if tool_set is None:
            raise LookupError(
                f"no tool set {name!r}: expected the id of a task or the digest of a set"
            )
        purpose = request.query_params.get("purpose", "execution")
        if purpose != "trial" and purpose != "execution":
            raise ValueError(f"expected purpose=trial or purpose=execution, found {purpose!r}")
        seed = request.query_params.get("seed", "0")
        if not (seed.isascii() and seed.isdigit() and len(seed) < 20 and int(seed) < _LARGEST_SEED):
            raise ValueError(f"expected a seed from 0 to 2**63 - 1, found {seed!r}")
        return _SessionSpec(tool_set, purpose, int(seed))

    def _watch_end(self, request: Request, send: Send) -> Send:
        """Return `send`, extended to end the tool session after a successful DELETE."""
        mcp_id = request.headers.get(MCP_SESSION_ID_HEADER, "")

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 300:
                self._end(mcp_id)
            await send(message)

        return watched if request.method == "DELETE" else send

    def _end(self, mcp_id: str) -> None:
        self._session_limit.left(mcp_id)
        self._tools.pop(mcp_id, None)
        opened = self._sessions.pop(mcp_id, None)
        if opened is not None and opened.done():
            self._close(opened)
        elif opened is not None:
            opened.add_done_callback(self._close)

    def _close(self, opened: asyncio.Future[str]) -> None:
        if not opened.cancelled() and not opened.exception():
            self._host.close([opened.result()])

    async def _list_tools(
        self, context: ServerRequestContext[Any, Request], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        del params  # all tools fit on one page
        tools = [
            Tool(name=tool.name, description=tool.description, input_schema=tool.parameters)
            for tool in self._known(_request(context))
        ]
        return ListToolsResult(tools=tools)

    async def _call_tool(
        self, context: ServerRequestContext[Any, Request], params: CallToolRequestParams
    ) -> CallToolResult:
        request = _request(context)
        spec, known = self._select(request), self._known(request)
        tool = next((each for each in known if each.name == params.name), None)
        if tool is None:
            names = ", ".join(each.name for each in known)
            raise MCPError(INVALID_PARAMS, f"no tool {params.name[:80]!r}; tools are: {names}")
        arguments = params.arguments or {}
        if fault := await fault_of(tool, arguments):
            return _result(fault, is_error=True)
        call = EncodedCall(name=tool.name, arguments=json.dumps(arguments))
        mcp_id = request.headers.get(MCP_SESSION_ID_HEADER, "")
        try:
            async with asyncio.timeout(self._deadline_s):
                session = await self._session(mcp_id, spec)
                item = CallItem(session=session, calls=(call,))
                result = await run_to_completion(self._host.call(0, item))
        except TimeoutError as error:
            message = f"no answer within {self._deadline_s:g} s"
            raise _failure("deadline", message) from error
        if result.error:
            raise _failure(result.error.kind, result.error.message)
        answer = result.answers[0]
        if answer.status is AnswerStatus.INFRA_ERROR:
            raise _failure("sandbox", answer.text)
        if answer.tools is not None:
            self._tools[mcp_id] = answer.tools
        return _result(answer.text, is_error=answer.status is not AnswerStatus.OK)

    def _known(self, request: Request) -> tuple[ToolSpec, ...]:
        """Return the tools that the MCP session of a request has now."""
        mcp_id = request.headers.get(MCP_SESSION_ID_HEADER, "")
        return self._tools.get(mcp_id, self._select(request).tool_set.tools)

    async def _session(self, mcp_id: str, spec: _SessionSpec) -> str:
        """Return the tool session's id for an MCP session; the first call opens it."""
        opened = self._sessions.get(mcp_id)
        if opened is None or (opened.done() and (opened.cancelled() or opened.exception())):
            self._forget_ended()
            opened = asyncio.ensure_future(self._open(spec))
            self._sessions[mcp_id] = opened
        return await asyncio.shield(opened)

    async def _open(self, spec: _SessionSpec) -> str:
        tool_set = spec.tool_set
        item = OpenItem(digest=tool_set.digest, seed=spec.seed, purpose=spec.purpose)
        if self._host.unknown_digests([item]):
            self._host.add_tool_sets({tool_set.digest: tool_set})
        opened = await self._host.open_session(item)
        if opened.error:
            raise _failure(opened.error.kind, opened.error.message)
        return opened.id

    def _forget_ended(self) -> None:
        """Drop the sessions that failed to open, and those that the host closed as idle."""
        for mcp_id, opened in list(self._sessions.items()):
            failed = opened.done() and (opened.cancelled() or opened.exception())
            if failed or (opened.done() and not self._host.knows(opened.result())):
                del self._sessions[mcp_id]
                self._tools.pop(mcp_id, None)


class _Endpoint:
    """An ASGI app as an object: starlette would restrict a function to GET requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _request(context: ServerRequestContext[Any, Request]) -> Request:
    if context.request is None:
        raise MCPError(TOOL_SERVER_ERROR, "expected a request over HTTP, found another transport")
    return context.request


def _failure(kind: str, message: str) -> MCPError:
    return MCPError(TOOL_SERVER_ERROR, message, {"kind": kind})


def _result(text: str, *, is_error: bool) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=is_error)


def _error(status: int, code: int, message: str, details: object = None) -> JSONResponse:
    error = {"code": code, "message": message} | ({"data": details} if details else {})
    return JSONResponse({"jsonrpc": "2.0", "id": None, "error": error}, status)
