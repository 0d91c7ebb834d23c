"""Tools of third-party MCP servers, over stdio, streamable HTTP or SSE, as tool sessions.

Every tool session is a separate MCP session; over stdio it is also a separate process, with a
folder of its own if its command uses `{scratch}`. There is no other isolation: what a server
changes elsewhere (files, a database) is also changed by trials. `isError` and errors of JSON-RPC
are tool errors, because the arguments may have caused them. A connection that is lost is an
infrastructure failure.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

import anyio
from mcp import ClientSession, MCPError
from mcp.client.session import IncomingMessage
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.types import LoggingMessageNotificationParams, ToolListChangedNotification
from pydantic import JsonValue

from envs.config import ToolServerConfig
from envs.endpoints import McpHttpEndpoint, McpStdioEndpoint, without_address
from envs.errors import ConfigError, DeadlineError, InfraError, ToolServerError, first_cause
from envs.remote.endpoint_session import BackendReply, EndpointSession, Limits
from envs.remote.mcp_content import text_of
from envs.remote.mcp_http import http_streams, sse_streams, transports_of
from envs.remote.mcp_listing import Listing, read_listing
from envs.remote.mcp_stdio import environment_of, stdio_streams
from envs.remote.mcp_wire import Wire
from envs.remote.tokens import endpoint_token
from envs.seeds import stable_hash
from envs.tools import AnswerStatus, JsonObject, LeftOut, SessionPurpose, ToolSet, ToolSpec

McpEndpoint = McpStdioEndpoint | McpHttpEndpoint

_SPARE_BYTES = 65_536
"""Bytes that a message may have in addition to eight times the longest text of an answer."""
_MAX_TOOLS = 1_000
_MAX_PAGES = 100
_SETTLE_S = 0.01
"""How long after an answer a server may still say that its tools have changed."""
_SEVERE = frozenset({"warning", "error", "critical", "alert", "emergency"})
_ELSEWHERE = frozenset({400, 404, 405, 406, 410, 415, 501})
"""Statuses with which an HTTP server may refuse the transport that it does not speak."""
_READ_FAILURES = (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream)


class McpTools:
    """ToolService for tool sets whose endpoint is an MCP server.

    `variables` are environment variables: PATH and HOME for processes, those that an endpoint
    names, and tokens.
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
            raise ConfigError(
                f"expected a tool set with an MCP endpoint, found {type(endpoint).__name__}"
            )
        backend = McpBackend(endpoint, self._variables, self._limits, tool_set.tools)
        await backend.start()
        self._opened += 1
        session_id = f"mcp-{stable_hash(seed, purpose, self._opened):016x}"
        return EndpointSession(session_id, tool_set, backend, self._limits, backend.changes)

    async def close(self) -> None: ...


async def tool_set_of_mcp(
    endpoint: McpEndpoint, config: ToolServerConfig, variables: Mapping[str, str]
) -> ToolSet:
    """Ask a server for its tools and return them as a tool set, with its instructions.

    Raises ToolServerError, DeadlineError, or ConfigError if it has none that can be served.
    """
    limits = Limits.of(config)
    backend = McpBackend(endpoint, variables, limits, ())
    await backend.start()
    try:
        async with asyncio.timeout(limits.open_s):
            found = await backend.list_tools()
        instructions = backend.instructions
    except TimeoutError as error:
        raise DeadlineError(
            f"{endpoint.place} did not list its tools within {limits.open_s:g} s "
            "(tools.request_timeout_s)"
        ) from error
    finally:
        await backend.close()
    if not found.tools:
        faults = "; ".join(f"{each.name}: {each.why}" for each in found.left_out)
        raise ConfigError(
            f"expected {endpoint.place} to list tools, found none"
            + (f" that can be served ({faults})" if faults else ": check its options")
        )
    return ToolSet(
        tools=found.tools,
        endpoint=endpoint,
        instructions=instructions,
        left_out=found.left_out,
    )


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
        tools: tuple[ToolSpec, ...],
    ) -> None:
        self._endpoint = endpoint
        self._limits = limits
        self._tools = tools
        self._token = ""
        if isinstance(endpoint, McpHttpEndpoint):
            self._token = endpoint_token(endpoint.token_variable, endpoint.place, variables)
            secrets = {endpoint.token_variable: self._token}
        else:
            secrets = environment_of(endpoint, variables)
        self._variables = variables
        self._wire = Wire(secrets)
        self._closing = asyncio.Event()
        self._owner: asyncio.Task[None] | None = None
        self._requests: JSONRPCDispatcher | None = None
        self._changed = False
        self._announces_changes = False
        self.instructions = ""
        """What the server says about its tools as a whole."""

    async def start(self) -> None:
        """Connect and initialize the session. Raises ToolServerError or DeadlineError."""
        endpoint = self._endpoint
        ways = transports_of(endpoint) if isinstance(endpoint, McpHttpEndpoint) else ("stdio",)
        refusal: InfraError | None = None
        for way in ways:
            self._wire.again()
            try:
                await self._start(self._streams_of(way))
            except ToolServerError as error:
                if self._wire.status not in _ELSEWHERE:
                    raise refusal or error from None
                refusal = refusal or error
            else:
                return
        if refusal is not None:
            raise refusal

    async def answer(self, index: int, arguments: JsonObject) -> BackendReply:
        """Call tool number `index`. Raises InfraError."""
        parameters: JsonObject = {"name": self._tools[index].name, "arguments": arguments}
        try:
            result = await self._ask("tools/call", parameters)
        except ToolServerError:
            if not self._wire.overlong:
                raise
            return BackendReply(AnswerStatus.TOOL_ERROR, self._wire.overlong)
        except MCPError as error:
            data = f" ({_json(error.data)})" if error.data is not None else ""
            return BackendReply(AnswerStatus.TOOL_ERROR, f"{error.message}{data}")
        status = AnswerStatus.TOOL_ERROR if result.get("isError") else AnswerStatus.OK
        return BackendReply(status, text_of(result.get("content"), result.get("structuredContent")))

    async def changes(self) -> tuple[ToolSpec, ...] | None:
        """Return all tools, if the server says that they have changed, else None."""
        if self._announces_changes and not self._changed:
            await asyncio.sleep(_SETTLE_S)
        if not self._changed:
            return None
        self._changed = False
        try:
            found = (await self.list_tools()).tools
        except (InfraError, MCPError):
            return None  # the next call meets the same fault, and says so
        listed = tuple(tool for tool in found if self._endpoint.wants(tool.name))
        if listed == self._tools:
            return None
        self._tools = listed
        return listed

    async def list_tools(self) -> Listing:
        """Return the tools that the server lists, from all pages. Raises ToolServerError."""
        listed: list[JsonValue] = []
        cursor: JsonValue = None
        for _ in range(_MAX_PAGES):
            try:
                page = await self._ask("tools/list", {"cursor": cursor} if cursor else {})
            except MCPError as error:
                raise ToolServerError(
                    self._wire.told(f"{self._endpoint.place}: cannot list its tools: {error}")
                ) from error
            tools = page.get("tools")
            listed += tools if isinstance(tools, list) else []
            cursor = page.get("nextCursor")
            if not cursor or len(listed) > _MAX_TOOLS:
                break
        found = read_listing(listed[:_MAX_TOOLS])
        if len(listed) <= _MAX_TOOLS and not cursor:
            return found
        rest = LeftOut(
            name="further pages",
            why=f"expected at most {_MAX_TOOLS} tools on {_MAX_PAGES} pages, found more",
        )
        return Listing(found.tools, (*found.left_out, rest))

    async def close(self) -> None:
        await self._stop(grace_s=self._limits.call_s)

    async def _ask(self, method: str, parameters: JsonObject) -> JsonObject:
        """Return the result of a request as it comes, because the library refuses a whole result
        for one fault in it. Raises MCPError for the server's own error, else ToolServerError.
        """
        requests = self._running()
        if self._wire.over_http:
            self._wire.again()
        asking = asyncio.ensure_future(requests.send_raw_request(method, parameters))
        failing = asyncio.ensure_future(self._wire.failed.wait())
        try:
            await asyncio.wait((asking, failing), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():  # over SSE nobody else would end the wait
                await asyncio.wait((asking,), timeout=_SETTLE_S)
            if not asking.done():
                raise ToolServerError(self._wire.told("the connection was lost"))
            return asking.result()
        except MCPError as error:
            if self._wire.explains(error):
                raise ToolServerError(self._wire.told(f"{error.message}")) from error
            raise
        except _READ_FAILURES as error:
            raise ToolServerError(self._wire.told("the connection was lost")) from error
        finally:
            for task in (asking, failing):
                task.cancel()
            await asyncio.wait((asking, failing))

    async def _start(self, streams: Callable[[], AbstractAsyncContextManager]) -> None:
        ready = asyncio.Event()
        self._closing.clear()
        self._owner = asyncio.create_task(self._own(streams, ready))
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
                late = (
                    f"{self._endpoint.place} did not initialize the MCP session within "
                    f"{self._limits.open_s:g} s (tools.request_timeout_s)"
                )
                raise DeadlineError(self._wire.told(late))
        except BaseException:
            await self._stop(grace_s=0.0)
            raise
        finally:
            waiter.cancel()

    async def _own(
        self, streams: Callable[[], AbstractAsyncContextManager], ready: asyncio.Event
    ) -> None:
        async with streams() as (read, write):
            requests = JSONRPCDispatcher(read, write)
            session = ClientSession(
                dispatcher=requests, message_handler=self._notice, logging_callback=self._log
            )
            async with session:
                await session.initialize()
                tools = session.server_capabilities and session.server_capabilities.tools
                self._announces_changes = bool(tools and tools.list_changed)
                self.instructions = (session.instructions or "").strip()
                self._requests = requests
                ready.set()
                await self._closing.wait()
                self._requests = None

    async def _notice(self, message: IncomingMessage) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._changed = True

    async def _log(self, params: LoggingMessageNotificationParams) -> None:
        if params.level in _SEVERE:
            self._wire.words.say(f"{params.level}: {_json(params.data)}")

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

    def _running(self) -> JSONRPCDispatcher:
        if self._requests is None or self._owner is None or self._owner.done():
            raise self._ended()
        return self._requests

    def _ended(self) -> InfraError:
        owner = self._owner
        ended = owner is not None and owner.done() and not owner.cancelled()
        cause: BaseException | None = owner.exception() if owner and ended else None
        while isinstance(cause, BaseExceptionGroup):
            cause = first_cause(cause)
        if isinstance(cause, InfraError):
            return cause
        why = f": {type(cause).__name__}: {cause}" if cause else ""
        told = self._wire.told(f"the MCP session with {self._endpoint.place} ended{why}")
        if isinstance(self._endpoint, McpHttpEndpoint):
            told = without_address(told, self._endpoint.url)
        return ToolServerError(told)

    def _streams_of(self, way: str) -> Callable[[], AbstractAsyncContextManager]:
        endpoint, limits = self._endpoint, self._limits
        message_bytes = 8 * limits.reply_bytes + _SPARE_BYTES
        if isinstance(endpoint, McpStdioEndpoint):
            return lambda: stdio_streams(endpoint, self._variables, message_bytes, self._wire)
        speak = sse_streams if way == "sse" else http_streams
        return lambda: speak(endpoint, self._token, limits.open_s, message_bytes, self._wire)


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
