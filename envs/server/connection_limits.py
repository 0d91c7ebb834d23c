"""Limits of a TCP server's connections: their number, and the time and size of a request's head.

A client is unknown until the guard has admitted one of its requests. An unknown client has 16 KiB
and ten seconds for the head of its first request. Where there are too many of them, the connection
that was made first is closed, so that a client which sends its token at once always gets in. File
descriptors are kept back for clients that were admitted, and for the processes that run tools.
"""

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

CLIENT = "client_connection"
"""Key of the connection's ClientConnection in the state of an ASGI scope."""
HEAD_BYTES = 16_384
HEAD_S = 10.0
MESSAGE_BYTES = 8 * 2**20
"""Longest message of a WebSocket, except on the native stream: a tool set there may have files."""
_NATIVE_STREAM = "/stream"
_MOST_UNKNOWN = 1_024
_MOST_KNOWN = 16_384


class ConnectionLimits:
    """The connections of one server; a quarter of its descriptors is for unknown ones, half
    of them for known clients.
    """

    def __init__(self, descriptors: int) -> None:
        self.most_unknown = max(1, min(_MOST_UNKNOWN, descriptors // 4))
        self.most_known = max(1, min(_MOST_KNOWN, descriptors // 2))
        self.known = 0
        self._unknown: dict[ClientConnection, None] = {}

    def enter(self, client: "ClientConnection") -> None:
        """Count an unknown client; the oldest one is closed if there are too many."""
        self._unknown[client] = None
        if len(self._unknown) > self.most_unknown:
            oldest = next(iter(self._unknown))
            self.leave(oldest)
            oldest.transport.abort()

    def admit(self, client: "ClientConnection") -> bool:
        """Count a client as known; return False if there is no room for another known one."""
        if client.known or client.gone:
            return client.known
        if self.known >= self.most_known:
            return False
        self._unknown.pop(client, None)
        client.known = True
        self.known += 1
        return True

    def leave(self, client: "ClientConnection") -> None:
        """Forget a connection that has ended; harmless if that was done."""
        self._unknown.pop(client, None)
        client.gone = True
        if client.known:
            client.known = False
            self.known -= 1


class ClientConnection:
    """One connection."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self.transport: Any = None
        self.known = False
        self.gone = False

    def enter(self, transport: asyncio.BaseTransport) -> None:
        """Note that the connection was made."""
        self.transport = transport
        self._limits.enter(self)

    def admit(self) -> bool:
        """Note that a request has passed the guard; return False if the server is full."""
        return self._limits.admit(self)

    def leave(self) -> None:
        """Note that the connection has ended."""
        self._limits.leave(self)


class LimitedHttp(H11Protocol):
    """HTTP with a deadline for the head of a request; h11 itself limits its bytes."""

    limits: ClassVar[ConnectionLimits | None] = None
    """None where every client is the user: on UNIX sockets."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._client = ClientConnection(self.limits) if self.limits else None
        self._head_due: asyncio.TimerHandle | None = None
        self.app_state = {**self.app_state, CLIENT: self._client}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the head of a request."""
        super().connection_made(transport)
        if self._client:
            self._client.enter(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the deadline is that of the request which is not complete yet."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._head_due is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        if self._client:
            self._client.leave()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_due = self.loop.call_later(HEAD_S, self._too_late)

    def _stop_waiting(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _too_late(self) -> None:
        self._head_due = None
        self.transport.close()


class LimitedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket, which takes over the connection of a LimitedHttp."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        client: ClientConnection | None = self.app_state.get(CLIENT)
        if client:
            client.leave()
        super().connection_lost(exc)

    def handle_connect(self, event: Any) -> None:
        """Begin the handshake; the path decides how long messages may be."""
        if event.path.partition("?")[0] != _NATIVE_STREAM:
            self.conn.max_message_size = MESSAGE_BYTES
        super().handle_connect(event)


def protocol_for(limits: ConnectionLimits | None) -> type[LimitedHttp]:
    """Return the protocol of a server with this limits."""
    return type("LimitedHttpOfServer", (LimitedHttp,), {"limits": limits})
