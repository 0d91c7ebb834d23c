"""One WebSocket of a tool server's client: each numbered request is answered once or fails."""

import asyncio
from dataclasses import dataclass

from pydantic import BaseModel, JsonValue, ValidationError
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from envs.errors import ConfigError, DeadlineError, ToolServerError
from envs.server.wire import (
    CloseRequest,
    ErrorResponse,
    OpenedSession,
    WireError,
    pack_frame,
    pack_message,
    unpack_frame,
)

_FRAME_LIMIT_BYTES = 64 * 2**20
_FRAME_MESSAGES = 512
_FRAME_BYTES = 2**20
"""A frame is closed after this many bytes: a server limits the values in one frame."""
_PING_TIMEOUT_S = 60.0


class ConnectionLost(ToolServerError):
    """No connection could be made, or it ended before the answer came.

    In the second case it is unknown whether the server started the request.
    """


@dataclass(slots=True)
class _Request:
    reply: asyncio.Future[tuple[str, JsonValue]]
    expiry: asyncio.TimerHandle


def check_address(address: str) -> None:
    """Raise ConfigError unless `address` is `unix:/path` or `http://host:port`."""
    if not address.startswith(("unix:", "http://", "https://")):
        raise ConfigError(
            f"expected unix:/path or http://host:port, found {address!r}: correct the "
            "address of the tool server"
        )


class ToolConnection:
    """Client end of the stream; requests made in one turn of the event loop go out as one frame."""

    def __init__(self, address: str, socket: ClientConnection) -> None:
        self._address = address
        self._socket = socket
        self._requests: dict[int, _Request] = {}
        self._number = 0
        self._outbox: list[bytes] = []
        self._filled = asyncio.Event()
        self._lost = ""
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
        self.known_digests: set[str] = set()
        """Digests of the tool sets that were sent over this connection."""

    @classmethod
    async def connect(cls, address: str, token: str, timeout_s: float) -> "ToolConnection":
        """Connect.

        Raises ToolServerError if refused, ConnectionLost if the server is unreachable.
        """
        headers = {"authorization": f"Bearer {token}"} if token else {}
        options = {
            "additional_headers": headers,
            "compression": None,
            "open_timeout": timeout_s,
            "ping_timeout": _PING_TIMEOUT_S,
            "max_size": _FRAME_LIMIT_BYTES,
        }
        try:
            if address.startswith("unix:"):
                path = address.removeprefix("unix:")
                socket = await unix_connect(path, "ws://tool-server/stream", **options)
            else:
                uri = "ws" + address.removeprefix("http").rstrip("/") + "/stream"
                socket = await connect(uri, proxy=None, **options)
        except InvalidStatus as error:
            raise ToolServerError(f"tool server {address}: {_refusal(error)}") from error
        except (OSError, WebSocketException, TimeoutError) as error:
            raise ConnectionLost(f"tool server {address} is not reachable: {error!r}") from error
        return cls(address, socket)

    @property
    def alive(self) -> bool:
        return not self._lost

    def request(
        self, kind: str, body: BaseModel, deadline_s: float
    ) -> asyncio.Future[tuple[str, JsonValue]]:
        """Send a request; the returned future gives the kind and body of its answer.

        The future fails with ConnectionLost or DeadlineError.
        """
        if self._lost:
            raise ConnectionLost(self._lost)
        loop = asyncio.get_running_loop()
        self._number += 1
        reply = loop.create_future()
        expiry = loop.call_later(deadline_s, self._expire, self._number, deadline_s)
        self._requests[self._number] = _Request(reply, expiry)
        self._outbox.append(pack_message(self._number, kind, body))
        self._filled.set()
        return reply

    async def close(self) -> None:
        """Close the connection; pending requests fail with ConnectionLost."""
        self._fail(f"the client of {self._address} was closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._socket.close()

    async def _write(self) -> None:
        try:
            while True:
                await self._filled.wait()
                messages = self._next_messages()
                del self._outbox[: len(messages)]
                if not self._outbox:
                    self._filled.clear()
                await self._socket.send(pack_frame(messages))
        except ConnectionClosed as error:
            self._fail(f"tool server {self._address}: {error}")

    def _next_messages(self) -> list[bytes]:
        """Return what goes out as the next frame: at least one message."""
        messages = self._outbox[:_FRAME_MESSAGES]
        size = 0
        for count, message in enumerate(messages, 1):
            size += len(message)
            if size >= _FRAME_BYTES:
                return messages[:count]
        return messages

    async def _read(self) -> None:
        try:
            async for frame in self._socket:
                for number, kind, body in unpack_frame(frame if isinstance(frame, bytes) else b""):
                    self._resolve(number, kind, body)
            self._fail(f"tool server {self._address} closed the connection")
        except ConnectionClosed as error:
            self._fail(f"tool server {self._address}: {error}")
        except ValueError as error:
            self._fail(f"tool server {self._address} sent an invalid frame: {error}")
            await self._socket.close()

    def _resolve(self, number: int, kind: str, body: JsonValue) -> None:
        request = self._requests.pop(number, None)
        if request is None:
            raise ValueError(f"an answer to request {number}, which was not sent")
        request.expiry.cancel()
        if not request.reply.done():
            request.reply.set_result((kind, body))
        elif kind == "opened":  # the caller gave up: nothing else would close the session
            session_id = OpenedSession.model_validate(body).id
            closing = self.request("close", CloseRequest(ids=(session_id,)), _PING_TIMEOUT_S)
            closing.add_done_callback(_retrieve_error)  # nothing awaits this future

    def _expire(self, number: int, deadline_s: float) -> None:
        """Fail the request. Its number stays registered, because the answer may still come."""
        reply = self._requests[number].reply
        if not reply.done():
            message = f"tool server {self._address} did not answer within {deadline_s:g} s"
            reply.set_exception(DeadlineError(message))

    def _fail(self, message: str) -> None:
        self._lost = self._lost or message
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request.expiry.cancel()
            if not request.reply.done():
                request.reply.set_exception(ConnectionLost(self._lost))


def _retrieve_error(reply: asyncio.Future[tuple[str, JsonValue]]) -> None:
    """Mark the future's exception as seen, so that asyncio does not log it."""
    if not reply.cancelled():
        reply.exception()


def _refusal(error: InvalidStatus) -> str:
    try:
        refused: WireError = ErrorResponse.model_validate_json(error.response.body or b"").error
    except ValidationError:
        return f"answered status {error.response.status_code}"
    return f"{refused.kind}: {refused.message}"
