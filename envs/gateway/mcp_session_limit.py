"""The limit of MCP sessions: where it is reached, one that has called no tool is ended.

Otherwise one client could take them all by `initialize`, which costs it nothing.
"""

import asyncio
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Scope, Send

_ID = b"mcp-session-id"


class McpSessionLimit:
    """When each MCP session was used last, by its id; `app` is the library's, which keeps them."""

    def __init__(self, app: ASGIApp, most: int, idle_s: float) -> None:
        self._app = app
        self._most = most
        self._idle_s = idle_s
        self._used_at: dict[str, float] = {}

    def used(self, mcp_id: str) -> None:
        """Note a request in a session; harmless if there is none."""
        if self._used_at.pop(mcp_id, None) is not None:
            self._used_at[mcp_id] = _now()  # at the end: the longest unused one is the first

    def left(self, mcp_id: str) -> None:
        """Note that a session has ended."""
        self._used_at.pop(mcp_id, None)

    def taking(self, send: Send) -> Send:
        """Return `send`, extended to note the session that an answer opens."""

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 300:
                for name, value in message.get("headers", ()):
                    if name.lower() == _ID:
                        self._used_at[value.decode()] = _now()
            await send(message)

        return watched

    async def make_room(self, calling: Collection[str]) -> None:
        """End the session that was unused for longest and is not among those `calling` tools, if
        the limit is reached.
        """
        self._forget_idle()
        if len(self._used_at) < self._most:
            return
        unused = next((name for name in self._used_at if name not in calling), None)
        if unused is not None:
            self.left(unused)
            await self._app(_ending(unused), _no_body, _ignored)

    def _forget_idle(self) -> None:
        """Forget the sessions that the library has ended, because they were idle for too long."""
        oldest = _now() - self._idle_s
        while self._used_at and next(iter(self._used_at.values())) < oldest:
            self._used_at.pop(next(iter(self._used_at)))


def _ending(mcp_id: str) -> Scope:
    """Return the request with which a client ends its session."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "DELETE",
        "scheme": "http",
        "path": "/mcp",
        "raw_path": b"/mcp",
        "query_string": b"",
        "root_path": "",
        "headers": [(_ID, mcp_id.encode())],
    }


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _ignored(message: Message) -> None:
    del message


def _now() -> float:
    return asyncio.get_running_loop().time()
