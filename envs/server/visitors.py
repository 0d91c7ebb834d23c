"""Connections to a server's TCP doors: how long a stranger may stay, and how many there may be.

A client is a stranger until the guard has admitted one of its requests. A stranger has 16 KiB and
ten seconds for the head of its first request. Where there are too many strangers, the one that came
first has to go, so that a client which sends its token at once always gets in. Descriptors are kept
back for those who were admitted, and for the children that run tools.
"""

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

VISITOR = "visitor"
"""Key of the connection's Visitor in the state of an ASGI scope."""
HEAD_BYTES = 16_384
HEAD_S = 10.0
MESSAGE_BYTES = 8 * 2**20
"""Longest message of a WebSocket, except on the native stream: a tool set there may have files."""
_NATIVE_STREAM = "/stream"
_MOST_STRANGERS = 1_024
_MOST_KNOWN = 16_384


class Lobby:
    """The connections of one server; a quarter of its descriptors is for strangers, half of them
    for known clients.
    """

    def __init__(self, descriptors: int) -> None:
        self.most_strangers = max(1, min(_MOST_STRANGERS, descriptors // 4))
        self.most_known = max(1, min(_MOST_KNOWN, descriptors // 2))
        self.known = 0
        self._strangers: dict[Visitor, None] = {}

    def enter(self, visitor: "Visitor") -> None:
        """Take in a stranger; the oldest one has to go if there are too many."""
        self._strangers[visitor] = None
        if len(self._strangers) > self.most_strangers:
            oldest = next(iter(self._strangers))
            self.leave(oldest)
            oldest.transport.abort()

    def admit(self, visitor: "Visitor") -> bool:
        """Make a stranger known; return False if there is no room for another known client."""
        if visitor.known or visitor.gone:
            return visitor.known
        if self.known >= self.most_known:
            return False
        self._strangers.pop(visitor, None)
        visitor.known = True
        self.known += 1
        return True

    def leave(self, visitor: "Visitor") -> None:
        """Forget a connection that has ended; harmless if that was done."""
        self._strangers.pop(visitor, None)
        visitor.gone = True
        if visitor.known:
            visitor.known = False
            self.known -= 1


class Visitor:
    """One connection."""

    def __init__(self, lobby: Lobby) -> None:
        self._lobby = lobby
        self.transport: Any = None
        self.known = False
        self.gone = False

    def enter(self, transport: asyncio.BaseTransport) -> None:
        """Note that the connection was made."""
        self.transport = transport
        self._lobby.enter(self)

    def admit(self) -> bool:
        """Note that a request has passed the guard; return False if the server is full."""
        return self._lobby.admit(self)

    def leave(self) -> None:
        """Note that the connection has ended."""
        self._lobby.leave(self)


class DoorProtocol(H11Protocol):
    """HTTP with a deadline for the head of a request; h11 itself limits its bytes."""

    lobby: ClassVar[Lobby | None] = None
    """None where every client is the user: on UNIX sockets."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._visitor = Visitor(self.lobby) if self.lobby else None
        self._head_due: asyncio.TimerHandle | None = None
        self.app_state = {**self.app_state, VISITOR: self._visitor}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the head of a request."""
        super().connection_made(transport)
        if self._visitor:
            self._visitor.enter(transport)
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
        if self._visitor:
            self._visitor.leave()
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


class DoorSocket(WebSocketsSansIOProtocol):
    """A WebSocket, which takes over the connection of a DoorProtocol."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        visitor: Visitor | None = self.app_state.get(VISITOR)
        if visitor:
            visitor.leave()
        super().connection_lost(exc)

    def handle_connect(self, event: Any) -> None:
        """Begin the handshake; the path decides how long messages may be."""
        if event.path.partition("?")[0] != _NATIVE_STREAM:
            self.conn.max_message_size = MESSAGE_BYTES
        super().handle_connect(event)


def protocol_for(lobby: Lobby | None) -> type[DoorProtocol]:
    """Return the protocol of a server with this lobby."""
    return type("LobbyProtocol", (DoorProtocol,), {"lobby": lobby})
