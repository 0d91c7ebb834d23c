"""The HTTP transports of MCP: streamable HTTP, and the older one with events (SSE)."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx2
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from pydantic import BaseModel, ValidationError

from envs.endpoints import McpHttpEndpoint
from envs.errors import InfraError
from envs.remote.bounded_body import Expander
from envs.remote.mcp_wire import Wire

_EVENTS = "text/event-stream"
_JSON = "application/json"
_MESSAGES = ("json", "event-stream")


@asynccontextmanager
async def http_streams(
    endpoint: McpHttpEndpoint, token: str, connect_s: float, message_bytes: int, wire: Wire
) -> AsyncGenerator:
    """Speak streamable HTTP while the context is open."""
    client = _client(token, connect_s, message_bytes, wire)
    speaking = streamable_http_client(
        endpoint.url, http_client=client, max_sse_event_size=message_bytes
    )
    async with client, speaking as streams:
        yield streams


@asynccontextmanager
async def sse_streams(
    endpoint: McpHttpEndpoint, token: str, connect_s: float, message_bytes: int, wire: Wire
) -> AsyncGenerator:
    """Speak the older transport while the context is open."""

    def client_of(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        del headers, timeout, auth
        return _client(token, connect_s, message_bytes, wire)

    speaking = sse_client(endpoint.url, httpx_client_factory=client_of)
    async with speaking as streams:
        yield streams


def transports_of(endpoint: McpHttpEndpoint) -> tuple[str, ...]:
    """Return the transports to try, the likelier one first."""
    if endpoint.transport is not None:
        return (endpoint.transport,)
    path = httpx2.URL(endpoint.url).path.rstrip("/")
    return ("sse", "http") if path.endswith("/sse") else ("http", "sse")


def _client(token: str, connect_s: float, message_bytes: int, wire: Wire) -> httpx2.AsyncClient:
    headers = {"accept-encoding": "identity"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    # no read timeout: a response stays open while a tool runs, and calls have our own deadline
    return httpx2.AsyncClient(
        headers=headers,
        timeout=httpx2.Timeout(connect_s, read=None),
        transport=_WatchedTransport(message_bytes, wire),
        trust_env=False,
    )


class _JsonRpcError(BaseModel):
    """A refusal that is an answer all the same."""

    jsonrpc: str
    error: dict[str, object]


class _WatchedTransport(httpx2.AsyncHTTPTransport):
    """Tells the wire why a message got no answer, and aborts a JSON body that exceeds the limit; in
    event streams the client limits each event.
    """

    def __init__(self, limit: int, wire: Wire) -> None:
        super().__init__()
        self._limit = limit
        self._wire = wire
        wire.over_http = True

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = await super().handle_async_request(request)
        except httpx2.HTTPError as error:
            if request.method == "POST":
                self._wire.lose(f"{type(error).__name__}: {error}")
            raise
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if isinstance(response.stream, httpx2.AsyncByteStream):
            try:
                expander = Expander(response.headers)
            except InfraError as error:
                self._wire.lose(str(error))
                raise httpx2.RemoteProtocolError(str(error)) from error
            response.headers.pop("content-encoding", None)  # the library expands without a limit
            limit = None if kind == _EVENTS else self._limit
            response.stream = _BoundedStream(response.stream, expander, limit, self._wire)
        if request.method == "POST":
            await self._judge(response, kind)
        elif request.method == "GET" and kind != _EVENTS and _begins(request):
            self._refused(response, kind)
        return response

    async def _judge(self, response: httpx2.Response, kind: str) -> None:
        """Note a response that carries no message."""
        status = response.status_code
        if status >= 400 and kind == _JSON and isinstance(response.stream, httpx2.AsyncByteStream):
            body = b"".join([part async for part in response.stream])
            response.stream = httpx2.ByteStream(body)
            if _is_error(body):
                return
        if status >= 300 or (status not in (202, 204) and kind and not kind.endswith(_MESSAGES)):
            self._refused(response, kind)

    def _refused(self, response: httpx2.Response, kind: str) -> None:
        status = response.status_code
        said = f"HTTP {status} {response.reason_phrase}".strip()
        found = said if status >= 300 else f"expected JSON or an event stream, found {kind}"
        self._wire.lose(found, status)


def _begins(request: httpx2.Request) -> bool:
    """Whether a GET request begins a connection of the older transport."""
    return "mcp-session-id" not in request.headers


def _is_error(body: bytes) -> bool:
    try:
        _JsonRpcError.model_validate_json(body)
    except ValidationError:
        return False
    return True


class _BoundedStream(httpx2.AsyncByteStream):
    """A response's bytes, expanded, up to a limit if there is one."""

    def __init__(
        self, stream: httpx2.AsyncByteStream, expander: Expander, limit: int | None, wire: Wire
    ) -> None:
        self._stream = stream
        self._expander = expander
        self._limit = limit
        self._wire = wire

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        received = 0
        try:
            async for part in self._stream:
                for piece in self._expander.pieces(part):
                    received += len(piece)
                    if self._limit is not None and received > self._limit:
                        self._wire.overlong = f"the reply is longer than {self._limit} bytes"
                        raise httpx2.ReadError(self._wire.overlong)
                    yield piece
            self._expander.finish()
        except InfraError as error:
            self._wire.lose(str(error))
            raise httpx2.ReadError(str(error)) from error

    async def aclose(self) -> None:
        await self._stream.aclose()
