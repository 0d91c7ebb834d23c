"""Tools of third-party MCP servers, over stdio or streamable HTTP, as tool sessions.

Every tool session is a separate MCP session; over stdio it is also a separate process. There is no
other isolation: what a server changes outside of its session (files, a database) is also changed by
trials. `isError` and refused arguments are tool errors. All other failures of the protocol or the
connection are infrastructure failures.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import httpx2
from mcp import ClientSession, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    EmbeddedResource,
    PaginatedRequestParams,
    TextContent,
    TextResourceContents,
    Tool,
)
from pydantic import TypeAdapter, ValidationError

from envs.config import ToolServerConfig
from envs.endpoints import McpHttpEndpoint, McpStdioEndpoint
from envs.errors import ConfigError, DeadlineError, InfraError, ToolServerError, first_cause
from envs.remote.endpoint_session import BackendReply, EndpointSession, Limits
from envs.remote.mcp_stdio import REPLY_TOO_LONG, stdio_streams
from envs.remote.tokens import endpoint_token
from envs.seeds import stable_hash
from envs.tools import AnswerStatus, JsonObject, SessionPurpose, ToolSet, ToolSpec

McpEndpoint = McpStdioEndpoint | McpHttpEndpoint

_SPARE_BYTES = 65_536
"""Bytes that a message may have in addition to eight times the longest text of an answer."""
_MAX_TOOLS = 1_000
_READ_FAILURES = (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream)
_JSON = TypeAdapter(dict)


class McpTools:
    """ToolService for tool sets whose endpoint is an MCP server.

    `variables` are environment variables: PATH and HOME for processes, and tokens.
    """

    def __init__(self, config: ToolServerConfig, variables: Mapping[str, str]) -> None:
        self._limits = Limits.of(config)
        self._variables = variables
        self._opened = 0

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> EndpointSession:
        """Open an MCP session. Raises ToolServerError or DeadlineError."""
        endpoint = tool_set.endpoint
        if not isinstance(endpoint, McpStdioEndpoint | McpHttpEndpoint):
            raise ConfigError(f"expected a tool set with an MCP endpoint, found {endpoint!r}")
        names = tuple(tool.name for tool in tool_set.tools)
        backend = McpBackend(endpoint, self._variables, self._limits, names)
        await backend.start()
        self._opened += 1
        session_id = f"mcp-{stable_hash(seed, purpose, self._opened):016x}"
        return EndpointSession(session_id, tool_set, backend, self._limits)

    async def close(self) -> None: ...


async def tool_set_of_mcp(
    endpoint: McpEndpoint, config: ToolServerConfig, variables: Mapping[str, str]
) -> ToolSet:
    """Ask a server for its tools and return them as a tool set.

    Raises ToolServerError, DeadlineError, or ConfigError if it has none.
    """
    limits = Limits.of(config)
    backend = McpBackend(endpoint, variables, limits, ())
    await backend.start()
    try:
        async with asyncio.timeout(limits.open_s):
            tools = await backend.list_tools()
    except TimeoutError as error:
        raise DeadlineError(
            f"{endpoint.place} did not list its tools within {limits.open_s:g} s"
        ) from error
    finally:
        await backend.close()
    if not tools:
        raise ConfigError(f"expected {endpoint.place} to list tools, found none: check its options")
    specs = [
        ToolSpec(
            name=tool.name,
            description=tool.description or tool.title or "",
            parameters=_JSON.validate_python(tool.input_schema),
        )
        for tool in tools
    ]
    return ToolSet(tools=tuple(specs), endpoint=endpoint)


class McpBackend:
    """EndpointBackend of one MCP session.

    A separate task enters and leaves the session's contexts, because anyio requires that one task
    does both. Calls run in the tasks of their callers.
    """

    def __init__(
        self,
        endpoint: McpEndpoint,
        variables: Mapping[str, str],
        limits: Limits,
        names: tuple[str, ...],
    ) -> None:
        self._endpoint = endpoint
        self._streams = _streams_of(endpoint, variables, limits)
        self._limits = limits
        self._names = names
        self._closing = asyncio.Event()
        self._owner: asyncio.Task[None] | None = None
        self._session: ClientSession | None = None

    async def start(self) -> None:
        """Connect and initialize the session. Raises ToolServerError or DeadlineError."""
        ready = asyncio.Event()
        self._owner = asyncio.create_task(self._own(ready))
        waiter = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait(
                (self._owner, waiter),
                timeout=self._limits.open_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._owner.done():
                raise self._ended()
            if not ready.is_set():
                raise DeadlineError(
                    f"{self._endpoint.place} did not initialize the MCP session within "
                    f"{self._limits.open_s:g} s"
                )
        except BaseException:
            await self._stop(grace_s=0.0)
            raise
        finally:
            waiter.cancel()

    async def answer(self, index: int, arguments: JsonObject) -> BackendReply:
        """Call tool number `index`. Raises InfraError."""
        parameters = CallToolRequestParams(name=self._names[index], arguments=arguments)
        try:
            result = await self._running().send_request(
                CallToolRequest(params=parameters), CallToolResult
            )
        except MCPError as error:
            if error.code in (INVALID_PARAMS, REPLY_TOO_LONG):
                return BackendReply(AnswerStatus.TOOL_ERROR, error.message)
            raise ToolServerError(f"MCP error {error.code}: {error.message}") from error
        except ValidationError as error:
            raise ToolServerError(f"expected an answer of MCP, found another: {error}") from error
        except _READ_FAILURES as error:
            raise ToolServerError(f"the connection was lost: {error!r}") from error
        status = AnswerStatus.TOOL_ERROR if result.is_error else AnswerStatus.OK
        return BackendReply(status, _text_of(result))

    async def list_tools(self) -> list[Tool]:
        """Return the tools that the server lists, from all pages. Raises ToolServerError."""
        tools: list[Tool] = []
        cursor: str | None = None
        while len(tools) < _MAX_TOOLS:
            parameters = PaginatedRequestParams(cursor=cursor) if cursor else None
            try:
                page = await self._running().list_tools(params=parameters)
            except (MCPError, ValidationError, *_READ_FAILURES) as error:
                raise ToolServerError(
                    f"{self._endpoint.place}: cannot list its tools: {error}"
                ) from error
            tools += page.tools
            cursor = page.next_cursor
            if not cursor:
                break
        return tools

    async def close(self) -> None:
        await self._stop(grace_s=self._limits.call_s)

    async def _own(self, ready: asyncio.Event) -> None:
        async with (
            self._streams() as (read, write),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            self._session = session
            ready.set()
            await self._closing.wait()
            self._session = None

    async def _stop(self, grace_s: float) -> None:
        """Let the owner task leave its contexts; cancel it if that takes too long."""
        if self._owner is None:
            return
        self._closing.set()
        if grace_s:
            await asyncio.wait((self._owner,), timeout=grace_s)
        if not self._owner.done():
            self._owner.cancel()
            await asyncio.wait((self._owner,), timeout=self._limits.open_s)
        if self._owner.done() and not self._owner.cancelled():
            self._owner.exception()  # marks it as retrieved: the calls have raised it

    def _running(self) -> ClientSession:
        if self._session is None or self._owner is None or self._owner.done():
            raise self._ended()
        return self._session

    def _ended(self) -> InfraError:
        owner = self._owner
        ended = owner is not None and owner.done() and not owner.cancelled()
        cause: BaseException | None = owner.exception() if owner and ended else None
        while isinstance(cause, BaseExceptionGroup):
            cause = first_cause(cause)
        if isinstance(cause, InfraError):
            return cause
        why = f": {type(cause).__name__}: {cause}" if cause else ""
        return ToolServerError(f"the MCP session with {self._endpoint.place} ended{why}")


def _text_of(result: CallToolResult) -> str:
    parts: list[str] = []
    for block in result.content:
        if isinstance(block, TextContent):
            parts.append(block.text)
        elif isinstance(block, EmbeddedResource) and isinstance(
            block.resource, TextResourceContents
        ):
            parts.append(block.resource.text)
        else:
            parts.append(f"[{block.type}]")
    if not parts and result.structured_content is not None:
        return _JSON.dump_json(result.structured_content).decode()
    return "\n".join(parts)


def _streams_of(
    endpoint: McpEndpoint, variables: Mapping[str, str], limits: Limits
) -> Callable[[], AbstractAsyncContextManager]:
    message_bytes = 8 * limits.reply_bytes + _SPARE_BYTES
    if isinstance(endpoint, McpStdioEndpoint):
        return lambda: stdio_streams(endpoint, variables, message_bytes)
    token = endpoint_token(endpoint.token_variable, endpoint.place, variables)
    return lambda: _http_streams(endpoint, token, limits, message_bytes)


@asynccontextmanager
async def _http_streams(
    endpoint: McpHttpEndpoint, token: str, limits: Limits, message_bytes: int
) -> AsyncGenerator:
    headers = {"accept-encoding": "identity"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    # no read timeout: a response stays open while a tool runs, and calls have our own deadline
    client = httpx2.AsyncClient(
        headers=headers,
        timeout=httpx2.Timeout(limits.open_s, read=None),
        transport=_BoundedTransport(message_bytes),
        trust_env=False,
    )
    async with (
        client,
        streamable_http_client(
            endpoint.url, http_client=client, max_sse_event_size=message_bytes
        ) as streams,
    ):
        yield streams


class _BoundedTransport(httpx2.AsyncHTTPTransport):
    """Aborts a JSON body that exceeds the limit; in event streams the client limits each event."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream") and isinstance(
            response.stream, httpx2.AsyncByteStream
        ):
            response.stream = _BoundedStream(response.stream, self._limit)
        return response


class _BoundedStream(httpx2.AsyncByteStream):
    """A response's bytes, up to a limit."""

    def __init__(self, stream: httpx2.AsyncByteStream, limit: int) -> None:
        self._stream = stream
        self._left = limit

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        async for part in self._stream:
            self._left -= len(part)
            if self._left < 0:
                raise httpx2.ReadError("the body is longer than the limit of a reply")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
