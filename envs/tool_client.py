"""The tool server's client: what falls due at one time is sent as one request."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial

import httpx
import msgpack
from pydantic import ValidationError

from envs.config import ToolServerConfig
from envs.errors import ConfigError, DeadlineError, ToolServerError
from envs.tool_wire import (
    MSGPACK,
    CallItem,
    CallRequest,
    CallResult,
    CloseRequest,
    ErrorResponse,
    OpenItem,
    OpenRequest,
    OpenResponse,
    WireCall,
    WireError,
    encode,
)
from envs.tools import SessionPurpose, ToolAnswer, ToolCall, ToolSet

_KEEP_ALIVE_S = 300.0
_CONNECTIONS = 256
_PACE_S = 0.005
"""While a request is under way, the next one gathers what falls due in so many seconds."""
_CONNECT_RETRIES = 1


_Request = Callable[[], Coroutine[None, None, None]]


@dataclass(slots=True)
class _Open:
    item: OpenItem
    tool_set: ToolSet
    reply: "asyncio.Future[RemoteSession]"


@dataclass(slots=True)
class _Call:
    item: CallItem
    reply: asyncio.Future[list[ToolAnswer]]


@dataclass(slots=True)
class _Close:
    id: str
    reply: asyncio.Future[None]


class RemoteSession:
    """Live tools on a tool server; see the Protocol ToolSession."""

    def __init__(self, client: "ToolClient", session_id: str, isolation: str) -> None:
        self._client = client
        self._id = session_id
        self._isolation = isolation
        self._closed = False

    @property
    def id(self) -> str:
        return self._id

    @property
    def isolation(self) -> str:
        return self._isolation

    @property
    def server(self) -> str:
        return self._client.name

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` in order; one answer per call. Raises ToolServerError or DeadlineError."""
        return await self._client.call(self._id, calls)

    async def close(self) -> None:
        """End the session; what goes wrong is the server's idle limit's business."""
        if not self._closed:
            self._closed = True
            await self._client.close_session(self._id)


class ToolClient:
    """A ToolService over one tool server; hundreds of episodes of one event loop share it.

    `address` is `unix:/path` or `http://host:port`; `name` is what episodes call the server, by
    default its address. A call is never sent twice: after a lost connection nobody knows whether
    the tool ran.
    """

    def __init__(
        self, address: str, config: ToolServerConfig, token: str = "", name: str = ""
    ) -> None:
        self._address = address
        self.name = name or address
        self._config = config
        limits = httpx.Limits(
            max_connections=_CONNECTIONS,
            max_keepalive_connections=_CONNECTIONS,
            keepalive_expiry=_KEEP_ALIVE_S,
        )
        if address.startswith("unix:"):
            base_url, socket_path = "http://tool-server", address.removeprefix("unix:")
        elif address.startswith(("http://", "https://")):
            base_url, socket_path = address, None
        else:
            raise ConfigError(f"expected unix:/path or http://host:port, found {address!r}")
        headers = {"content-type": MSGPACK}
        if token:
            headers["authorization"] = f"Bearer {token}"
        self._http = httpx.AsyncClient(
            base_url=base_url,
            transport=httpx.AsyncHTTPTransport(
                uds=socket_path, limits=limits, retries=_CONNECT_RETRIES
            ),
            headers=headers,
            timeout=None,  # every request has its own deadline below
            trust_env=False,
        )
        self._known_digests: set[str] = set()
        self._opens: list[_Open] = []
        self._calls: list[_Call] = []
        self._closes: list[_Close] = []
        self._flush_due = False
        self._requests: dict[asyncio.Task[None], Sequence[asyncio.Future]] = {}
        self._ended = False

    @property
    def address(self) -> str:
        return self._address

    async def open(self, tool_set: ToolSet, seed: int, purpose: SessionPurpose) -> RemoteSession:
        """Open a session in its initial state. Raises ToolServerError or DeadlineError."""
        reply: asyncio.Future[RemoteSession] = self._future()
        item = OpenItem(digest=tool_set.digest, seed=seed, purpose=purpose)
        self._opens.append(_Open(item, tool_set, reply))
        return await reply

    async def call(self, session_id: str, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` of one session in order. Raises ToolServerError or DeadlineError."""
        if not calls:
            return []
        wire_calls = tuple(
            WireCall(name=call.name, arguments=json.dumps(call.arguments)) for call in calls
        )
        reply: asyncio.Future[list[ToolAnswer]] = self._future()
        self._calls.append(_Call(CallItem(session=session_id, calls=wire_calls), reply))
        return await reply

    async def close_session(self, session_id: str) -> None:
        """End a session; never raises for a server or a session that is gone."""
        if self._ended:
            return
        reply: asyncio.Future[None] = self._future()
        self._closes.append(_Close(session_id, reply))
        try:
            await reply
        except (ToolServerError, DeadlineError):
            return

    async def close(self) -> None:
        """Hang up; requests in flight end with ToolServerError."""
        self._ended = True
        self._flush()
        requests = dict(self._requests)
        for task in requests:
            task.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        for reply in (reply for replies in requests.values() for reply in replies):
            if not reply.done():  # its request was cancelled before it began
                reply.set_exception(ToolServerError(f"the client of {self._address} was closed"))
        await self._http.aclose()

    def _future(self) -> asyncio.Future:
        if self._ended:
            raise ToolServerError(f"the client of {self._address} was closed; make a new one")
        loop = asyncio.get_running_loop()
        if not self._flush_due:
            self._flush_due = True
            loop.call_later(_PACE_S if self._requests else 0, self._flush)
        return loop.create_future()

    def _flush(self) -> None:
        self._flush_due = False
        opens, self._opens = self._opens, []
        calls, self._calls = self._calls, []
        closes, self._closes = self._closes, []
        if opens:
            self._send(partial(self._send_opens, opens), [entry.reply for entry in opens])
        if calls:
            longest_s = self._config.call_timeout_s * max(len(entry.item.calls) for entry in calls)
            self._send(
                partial(self._send_calls, calls), [entry.reply for entry in calls], longest_s
            )
        if closes:
            self._send(partial(self._send_closes, closes), [entry.reply for entry in closes])

    def _send(
        self,
        request: _Request,
        replies: Sequence[asyncio.Future],
        tools_s: float = 0.0,
    ) -> None:
        deadline_s = tools_s + self._config.request_timeout_s
        task = asyncio.get_running_loop().create_task(self._guard(request, replies, deadline_s))
        self._requests[task] = replies
        task.add_done_callback(lambda done: self._requests.pop(done, None))

    async def _guard(
        self,
        request: _Request,
        replies: Sequence[asyncio.Future],
        deadline_s: float,
    ) -> None:
        """Run one request; every waiter gets its answer or a typed error, whatever happens."""
        failure: Exception = ToolServerError(f"the client of {self._address} was closed")
        try:
            async with asyncio.timeout(deadline_s):
                await request()
            failure = ToolServerError(f"tool server {self._address} left an item unanswered")
        except TimeoutError:
            failure = DeadlineError(
                f"tool server {self._address} did not answer within {deadline_s:g} s"
            )
        except httpx.HTTPError as error:
            failure = ToolServerError(f"tool server {self._address}: {error!r}")
        except (ValidationError, msgpack.UnpackException, ValueError) as error:
            failure = ToolServerError(f"tool server {self._address} answered nonsense: {error}")
        except ToolServerError as error:
            failure = error
        finally:
            for reply in replies:
                if not reply.done():
                    reply.set_exception(failure)

    async def _send_opens(self, opens: Sequence[_Open]) -> None:
        fresh = {
            o.item.digest: o.tool_set for o in opens if o.item.digest not in self._known_digests
        }
        items = tuple(entry.item for entry in opens)
        response = await self._post("/sessions", OpenRequest(sessions=items, tool_sets=fresh))
        if response.status_code == 409:  # the server started anew, or forgot
            everything = {entry.item.digest: entry.tool_set for entry in opens}
            request = OpenRequest(sessions=items, tool_sets=everything)
            response = await self._post("/sessions", request)
        self._check(response)
        self._known_digests |= {entry.item.digest for entry in opens}
        sessions = OpenResponse.model_validate(msgpack.unpackb(response.content)).sessions
        orphans: list[str] = []
        for entry, opened in zip(opens, sessions, strict=True):
            if entry.reply.done():  # cancelled meanwhile: nobody else would close the session
                orphans += [opened.id] * bool(opened.id)
            elif opened.error:
                entry.reply.set_exception(self._error(opened.error))
            else:
                entry.reply.set_result(RemoteSession(self, opened.id, opened.isolation))
        if orphans:
            await self._post("/sessions/close", CloseRequest(ids=tuple(orphans)))

    async def _send_calls(self, calls: Sequence[_Call]) -> None:
        request = CallRequest(items=tuple(entry.item for entry in calls))
        unpacker = msgpack.Unpacker()
        async with self._http.stream("POST", "/calls", content=encode(request)) as response:
            if response.status_code != 200:
                await response.aread()
                self._check(response)
            async for part in response.aiter_raw():
                unpacker.feed(part)
                for content in unpacker:
                    self._resolve(calls, CallResult.model_validate(content))

    def _resolve(self, calls: Sequence[_Call], result: CallResult) -> None:
        if not 0 <= result.index < len(calls):
            raise ValueError(f"a result for item {result.index} of {len(calls)}")
        entry = calls[result.index]
        if entry.reply.done():
            return
        if result.error:
            entry.reply.set_exception(self._error(result.error))
        elif len(result.answers) != len(entry.item.calls):
            raise ValueError(f"{len(result.answers)} answers to {len(entry.item.calls)} calls")
        else:
            entry.reply.set_result(list(result.answers))

    async def _send_closes(self, closes: Sequence[_Close]) -> None:
        ids = tuple(entry.id for entry in closes)
        self._check(await self._post("/sessions/close", CloseRequest(ids=ids)))
        for entry in closes:
            if not entry.reply.done():
                entry.reply.set_result(None)

    async def _post(self, path: str, request: OpenRequest | CloseRequest) -> httpx.Response:
        return await self._http.post(path, content=encode(request))

    def _check(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            return
        try:
            error = ErrorResponse.model_validate_json(response.content).error
        except ValidationError as failure:
            raise ToolServerError(
                f"tool server {self._address} answered status {response.status_code}"
            ) from failure
        raise self._error(error)

    def _error(self, error: WireError) -> ToolServerError:
        return ToolServerError(f"tool server {self._address}: {error.kind}: {error.message}")
