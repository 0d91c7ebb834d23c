"""The tool server's HTTP routes: they validate bodies and answer them; errors are typed."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from envs.server.metrics import ToolMetrics
from envs.server.session_host import SessionHost, run_to_completion
from envs.server.stream import ToolStream
from envs.server.tool_host import unknown_session
from envs.server.wire import (
    JSON,
    MSGPACK,
    STATUS_OF_ERROR,
    CallItem,
    CallRequest,
    CallResponse,
    CallResult,
    CloseRequest,
    CloseResponse,
    ErrorKind,
    ErrorResponse,
    OpenRequest,
    OpenResponse,
    WireError,
    WireT,
    decode,
    encode,
    first_complaint,
)

BODY_LIMIT_BYTES = 64 * 2**20
_LINGER_BYTES, _LINGER_S = 256 * 2**20, 30.0
_POLICY = 1_008  # RFC 6455, 7.4.1
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Refusal(Exception):
    """Raised to answer a request with an error."""

    def __init__(self, error: WireError) -> None:
        super().__init__(error)
        self.error = error

    @classmethod
    def of(cls, kind: ErrorKind, message: str) -> "Refusal":
        return cls(WireError(kind=kind, message=message))


class ToolRoutes:
    """The HTTP routes and the stream of one host."""

    def __init__(self, host: SessionHost, metrics: ToolMetrics) -> None:
        self._host = host
        self._metrics = metrics

    async def open_sessions(self, request: Request) -> Response:
        """Open sessions, each in the initial state of its tool set."""
        message = await _read(request, OpenRequest)
        try:
            self._host.add_tool_sets(message.tool_sets)
        except ValueError as error:
            raise Refusal.of("bad_request", str(error)) from error
        if unknown := self._host.unknown_digests(message.sessions):
            names = ", ".join(unknown)
            raise Refusal.of("unknown_tool_set", f"send the content of tool sets {names} as well")
        opened = await asyncio.gather(*(self._host.open_session(item) for item in message.sessions))
        _raise_common_error([session.error for session in opened])
        return _reply(request, OpenResponse(sessions=tuple(opened)))

    async def call_tools(self, request: Request) -> Response:
        """Call tools: sessions run in parallel, the calls of one session in order.

        A msgpack response is a sequence of CallResults, each sent as soon as it is ready.
        """
        message = await _read(request, CallRequest)
        if not any(self._host.knows(item.session) for item in message.items):
            raise Refusal(unknown_session(message.items[0].session))
        if not _speaks_json(request):
            return StreamingResponse(self._as_ready(message.items), media_type=MSGPACK)
        calls = [self._run(index, item) for index, item in enumerate(message.items)]
        results = await asyncio.gather(*calls)
        _raise_common_error([result.error for result in results])
        return _reply(request, CallResponse(results=tuple(results)))

    async def _run(self, index: int, item: CallItem) -> CallResult:
        return await run_to_completion(self._host.call(index, item))

    async def _as_ready(self, items: Sequence[CallItem]) -> AsyncIterator[bytes]:
        """Yield results as sessions finish, so that a slow tool does not delay other answers."""
        finished: asyncio.Queue[CallResult] = asyncio.Queue()

        async def run(index: int, item: CallItem) -> None:
            finished.put_nowait(await self._run(index, item))

        async with asyncio.TaskGroup() as group:
            for index, item in enumerate(items):
                group.create_task(run(index, item))
            left = len(items)
            while left:
                results = [await finished.get()]
                while not finished.empty():
                    results.append(finished.get_nowait())
                left -= len(results)
                yield b"".join(encode(result) for result in results)

    async def close_sessions(self, request: Request) -> Response:
        """Close sessions; it is no error if some are closed already."""
        message = await _read(request, CloseRequest)
        return _reply(request, CloseResponse(closed=self._host.close(message.ids)))

    async def close_session(self, session_id: str) -> Response:
        """Close one session; answers 404 if it is not open."""
        if not self._host.close([session_id]):
            raise Refusal(unknown_session(session_id))
        return Response(status_code=204)

    async def stream(self, websocket: WebSocket) -> None:
        """Serve the native protocol; refuse pages in a browser, from whatever site."""
        if "origin" in websocket.headers:
            await websocket.close(_POLICY, "expected no Origin header: browsers are not served")
            return
        await ToolStream(self._host, websocket).serve()

    async def health(self) -> Response:
        """Return the server's state and how its sessions are isolated."""
        health = await self._host.health()
        status = 200 if health.status == "healthy" else 503
        return Response(encode(health, as_json=True), status, media_type=JSON)

    async def metrics(self) -> Response:
        """Return the metrics in Prometheus' text format."""
        text = self._metrics.render(await self._host.health())
        return Response(text, media_type=PROMETHEUS_TEXT)


def error_response(error: WireError) -> Response:
    """Return the HTTP response for `error`."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if error.kind == "unauthorized":
        headers["www-authenticate"] = "Bearer"
    body = encode(ErrorResponse(error=error), as_json=True)
    kind = _LingeringResponse if error.kind == "too_large" else Response
    return kind(body, STATUS_OF_ERROR[error.kind], headers, media_type=JSON)


class _LingeringResponse(Response):
    """Answers at once, then discards what the client still sends, within limits, and disconnects.

    Otherwise a client that writes its complete body before it reads would see a connection reset
    instead of the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*self.raw_headers, (b"connection", b"close")]
        start = {"type": "http.response.start", "status": self.status_code, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        left = _LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body"):
                        break
        await send({"type": "http.response.body", "body": b""})


def _speaks_json(request: Request) -> bool:
    """Return whether the body is JSON. Raises Refusal if it is neither JSON nor msgpack."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in (JSON, MSGPACK):
        found = repr(content_type) if content_type else "none"
        raise Refusal.of(
            "unsupported_type", f"expected content-type {JSON} or {MSGPACK}, found {found}"
        )
    return content_type == JSON


async def _read(request: Request, model: type[WireT]) -> WireT:
    as_json = _speaks_json(request)
    too_large = Refusal.of(
        "too_large", f"expected a body of at most {BODY_LIMIT_BYTES} bytes: split the request"
    )
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated[:20]) > BODY_LIMIT_BYTES:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_LIMIT_BYTES:
            raise too_large
    try:
        return decode(model, bytes(body), as_json=as_json)
    except ValidationError as error:
        raise Refusal.of("bad_request", first_complaint(error)) from error
    except ValueError as error:
        raise Refusal.of("bad_request", str(error)) from error


def _reply(request: Request, message: BaseModel) -> Response:
    as_json = _speaks_json(request)
    return Response(encode(message, as_json=as_json), media_type=JSON if as_json else MSGPACK)


def _raise_common_error(errors: Sequence[WireError | None]) -> None:
    """Refuse the request with its first error if every item failed."""
    failed = [error for error in errors if error]
    if failed and len(failed) == len(errors):
        raise Refusal(failed[0])
