"""The tool server's HTTP routes: they validate bodies and answer them; errors are typed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.websockets import WebSocket

from envs.server.incoming import BIG_BYTES, read_body
from envs.server.metrics import ToolMetrics
from envs.server.session_host import SessionHost, run_to_completion
from envs.server.stream import ToolStream
from envs.server.tool_host import unknown_session
from envs.server.wire import (
    JSON,
    MSGPACK,
    CallItem,
    CallRequest,
    CallResponse,
    CallResult,
    CloseRequest,
    CloseResponse,
    ErrorKind,
    OpenRequest,
    OpenResponse,
    WireError,
    encode,
)

_RequestT = TypeVar("_RequestT", bound=BaseModel)
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
        """Serve the native protocol."""
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


def _speaks_json(request: Request) -> bool:
    """Return whether the body is JSON. Raises Refusal if it is neither JSON nor msgpack."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in (JSON, MSGPACK):
        found = repr(content_type) if content_type else "none"
        raise Refusal.of(
            "unsupported_type", f"expected content-type {JSON} or {MSGPACK}, found {found}"
        )
    return content_type == JSON


async def _read(request: Request, model: type[_RequestT]) -> _RequestT:
    as_json = _speaks_json(request)
    body = await request.body()
    try:
        if len(body) <= BIG_BYTES:
            return read_body(model, body, as_json=as_json)
        return await asyncio.to_thread(read_body, model, body, as_json=as_json)
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
