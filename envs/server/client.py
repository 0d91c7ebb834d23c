"""The tool server's client: sessions over one connection, with typed failures and deadlines."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from envs.config import ToolServerConfig
from envs.errors import DeadlineError, ServerFullError, ToolServerError
from envs.sandbox.isolation import LONGEST_RESTART_S
from envs.server.circuit_breaker import CircuitBreaker
from envs.server.connection import ConnectionLost, ToolConnection, check_address
from envs.server.shapes import first_complaint
from envs.server.wire import (
    CallItem,
    CloseRequest,
    OpenedSession,
    OpenItem,
    StreamOpen,
    WireError,
    encoded_call,
)
from envs.tools import SessionPurpose, ToolAnswer, ToolCall, ToolSet

_TRIES = 2
_RETRY_PAUSE_S = 0.1
_ANSWERS = TypeAdapter(list[ToolAnswer])
_OPENED = TypeAdapter(OpenedSession)
_ERROR = TypeAdapter(WireError)
_ShapeT = TypeVar("_ShapeT")


class _UnknownToolSet(ToolServerError):
    """The server does not have the tool set's content (any more)."""


class RemoteSession:
    """ToolSession on a tool server."""

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
        """End the session. If that fails, the server ends it at its idle limit."""
        if not self._closed:
            self._closed = True
            await self._client.close_session(self._id)


class ToolClient:
    """ToolService on one tool server; hundreds of episodes of one event loop share it.

    `address` is `unix:/path` or `http://host:port`. `name` is the server's name in episodes, by
    default its address. Sessions end with the connection. So if the connection is lost while a
    session is opened, the request is sent again. A call is never sent again, because it is unknown
    whether the tool ran.
    """

    def __init__(
        self, address: str, config: ToolServerConfig, token: str = "", name: str = ""
    ) -> None:
        check_address(address)
        self._address = address
        self.name = name or address
        self._config = config
        self._token = token
        self._connection: ToolConnection | None = None
        self._connecting = asyncio.Lock()
        self._ended = False
        self._breaker = CircuitBreaker(
            config.breaker_failures,
            config.breaker_pause_s,
            lambda: asyncio.get_running_loop().time(),
        )

    @property
    def address(self) -> str:
        return self._address

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> RemoteSession:
        """Open a session in its initial state.

        Raises ToolServerError, DeadlineError, or ServerFullError if a later try may succeed.
        """
        item = OpenItem(digest=tool_set.digest, seed=seed, purpose=purpose, episode=episode)
        for tries_left in reversed(range(_TRIES)):
            try:
                connection = await self._live_connection()
                return await self._open_on(connection, item, tool_set)
            except ConnectionLost:
                if not tries_left or self._ended or self._breaker.state == "open":
                    raise
            await asyncio.sleep(_RETRY_PAUSE_S)
        raise AssertionError("unreachable: the last try returns or raises")

    async def call(self, session_id: str, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` of one session in order. Raises ToolServerError or DeadlineError."""
        if not calls:
            return []
        item = CallItem(session=session_id, calls=tuple(map(encoded_call, calls)))
        connection = self._connection
        if connection is None or not connection.alive or self._breaker.state != "closed":
            connection = await self._live_connection()
        call_s = self._config.call_timeout_s + LONGEST_RESTART_S
        deadline_s = call_s * len(calls) + self._config.request_timeout_s
        body = await self._answer(connection, ("call", "answers"), item, deadline_s)
        answers = self._checked(_ANSWERS, body)
        if len(answers) != len(calls):
            raise ToolServerError(
                f"tool server {self._address}: expected {len(calls)} answers, one per call, found "
                f"{len(answers)}"
            )
        return answers

    async def close_session(self, session_id: str) -> None:
        """End a session; does not raise if the server or the session is gone."""
        connection = self._connection
        if connection is None or not connection.alive:  # the sessions ended with it
            return
        message = CloseRequest(ids=(session_id,))
        deadline_s = self._config.request_timeout_s
        with contextlib.suppress(ToolServerError, DeadlineError):
            await self._answer(connection, ("close", "closed"), message, deadline_s)

    async def close(self) -> None:
        """Disconnect, which ends the sessions; pending requests fail with ToolServerError."""
        self._ended = True
        if self._connection:
            await self._connection.close()

    async def _live_connection(self) -> ToolConnection:
        """Return the connection, after reconnecting if it was lost. Raises ToolServerError."""
        if not self._ended and not self._breaker.admit():
            raise ConnectionLost(
                f"tool server {self._address} failed {self._config.breaker_failures} times in a "
                f"row; it is not called for {self._config.breaker_pause_s:g} s"
            )
        async with self._connecting:
            if self._ended:
                raise ConnectionLost(f"the client of {self._address} was closed; create a new one")
            if self._connection is None or not self._connection.alive:
                timeout_s = self._config.request_timeout_s
                try:
                    self._connection = await ToolConnection.connect(
                        self._address, self._token, timeout_s
                    )
                except ConnectionLost:
                    self._breaker.failed()
                    raise
            return self._connection

    async def _open_on(
        self, connection: ToolConnection, item: OpenItem, tool_set: ToolSet
    ) -> RemoteSession:
        known = item.digest in connection.known_digests
        connection.known_digests.add(item.digest)
        kinds, deadline_s = ("open", "opened"), self._config.request_timeout_s
        message = StreamOpen(session=item, tool_set=None if known else tool_set)
        try:
            body = await self._answer(connection, kinds, message, deadline_s)
        except _UnknownToolSet:  # the server dropped it from its cache
            message = StreamOpen(session=item, tool_set=tool_set)
            body = await self._answer(connection, kinds, message, deadline_s)
        opened = self._checked(_OPENED, body)
        return RemoteSession(self, opened.id, opened.isolation)

    async def _answer(
        self,
        connection: ToolConnection,
        kinds: tuple[str, str],
        message: BaseModel,
        deadline_s: float,
    ) -> JsonValue:
        """Send a message of kind `kinds[0]`; return the body of its answer, of kind `kinds[1]`."""
        try:
            kind, body = await connection.request(kinds[0], message, deadline_s)
        except DeadlineError:
            self._breaker.failed()
            raise
        except ConnectionLost:
            if (
                self._connection is connection
            ):  # one lost connection counts once, however many requests waited
                self._connection = None
                self._breaker.failed()
            raise
        self._breaker.succeeded()
        if kind == "error":
            raise self._error(self._checked(_ERROR, body))
        if kind != kinds[1]:
            raise ToolServerError(
                f"tool server {self._address}: expected {kinds[1]!r} in answer to {kinds[0]!r}, "
                f"found {kind!r}: client and server are of different versions"
            )
        return body

    def _checked(self, shape: TypeAdapter[_ShapeT], body: JsonValue) -> _ShapeT:
        try:
            return shape.validate_python(body)
        except ValidationError as error:
            raise ToolServerError(
                f"tool server {self._address} sent an invalid answer: {first_complaint(error)}"
            ) from error

    def _error(self, error: WireError) -> ToolServerError:
        message = f"tool server {self._address}: {error.kind}: {error.message}"
        if error.kind == "unknown_tool_set":
            return _UnknownToolSet(message)
        if error.retry_after_s is not None:
            return ServerFullError(message, error.retry_after_s)
        return ToolServerError(message)
