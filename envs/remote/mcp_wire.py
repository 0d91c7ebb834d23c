"""What a transport knows about its MCP server beside the messages: whether it is still there."""

import asyncio
from collections.abc import Mapping

from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp import MCPError
from mcp.shared.message import SessionMessage
from mcp.types import CONNECTION_CLOSED, INVALID_REQUEST, PARSE_ERROR

from envs.remote.last_words import LastWords

Received = MemoryObjectReceiveStream[SessionMessage | Exception]
Streams = tuple[Received, MemoryObjectSendStream[SessionMessage]]

_MADE_CODES = (CONNECTION_CLOSED, INVALID_REQUEST, PARSE_ERROR)
_MADE_ERRORS = (
    "Connection closed",
    "SSE stream",
    "server answered a request with 202",
    "Failed to parse",
    "Session terminated",
    "Unexpected content type",
)
"""How errors begin that the client library makes over HTTP, because no answer can come any more."""

_OVERLONG_EVENT = "event exceeded"
"""What the library says of an event that is longer than allowed."""


class Wire:
    """The state of one connection, written by its transport."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self.words = LastWords(secrets)
        self.status = 0
        """HTTP status of the last refused request; 0 if there is none."""
        self.over_http = False
        self.lost = ""
        """Why no answer can come any more; empty while one can."""
        self.failed = asyncio.Event()
        """Set with `lost`."""
        self.overlong = ""
        """Set if the last reply was longer than the limit: what it was."""

    def lose(self, why: str, status: int = 0) -> None:
        """Note that no answer can come any more."""
        self.lost, self.status = why, status
        self.failed.set()

    def again(self) -> None:
        """Forget a failure, before a new request or a new connection is tried."""
        self.lost, self.status, self.overlong = "", 0, ""
        self.failed.clear()

    def explains(self, error: MCPError) -> bool:
        """Whether `error` means that the connection is lost; any other is the server's answer."""
        made = error.code in _MADE_CODES and error.message.startswith(_MADE_ERRORS)
        if self.over_http and made and _OVERLONG_EVENT in error.message:
            self.overlong = "the reply is longer than the limit"
        return bool(self.lost) or (self.over_http and made)

    def told(self, message: str) -> str:
        """Return `message` with why the connection is lost, and what the server said last."""
        return self.words.after(f"{message}: {self.lost}" if self.lost else message)
