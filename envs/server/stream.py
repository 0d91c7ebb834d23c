"""The native protocol on one WebSocket: each request is answered as soon as it is ready."""

import asyncio
from collections.abc import Sequence

from pydantic import BaseModel
from starlette.websockets import WebSocket, WebSocketDisconnect

from envs.server.incoming import BIG_BYTES, Incoming, read_frame
from envs.server.session_host import SessionHost
from envs.server.wire import (
    CallItem,
    CloseResponse,
    StreamOpen,
    WireError,
    pack_frame,
    pack_message,
)

_OUTBOX_LIMIT = 4_096
_BAD_FRAME, _WRONG_TYPE = 1_007, 1_003  # RFC 6455, 7.4.1


class ToolStream:
    """One client's connection; sessions end with the connection that opened them.

    An invalid message is answered with `bad_request`. A frame that holds no messages ends the
    connection.
    """

    def __init__(self, host: SessionHost, websocket: WebSocket) -> None:
        self._host = host
        self._websocket = websocket
        self._sessions: set[str] = set()
        self._outbox: list[bytes] = []
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._over = False

    async def serve(self) -> None:
        """Serve until the client disconnects, then end its sessions."""
        await self._websocket.accept()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write())
            try:
                await self._read(group)
            finally:
                self._over = True
                self._filled.set()
                self._host.close(list(self._sessions))

    async def _read(self, group: asyncio.TaskGroup) -> None:
        while not self._over:
            event = await self._websocket.receive()
            if event["type"] == "websocket.disconnect":
                return
            frame = event.get("bytes")
            if frame is None:
                await self._refuse(_WRONG_TYPE, "expected binary frames of msgpack, found text")
                return
            try:
                incoming = (
                    read_frame(frame)
                    if len(frame) <= BIG_BYTES
                    else await asyncio.to_thread(read_frame, frame)
                )
            except ValueError as error:
                await self._refuse(_BAD_FRAME, str(error)[:100])
                return
            for message in incoming:
                self._take(group, message)
            while len(self._outbox) > _OUTBOX_LIMIT and not self._over:
                self._emptied.clear()
                await self._emptied.wait()

    async def _refuse(self, code: int, reason: str) -> None:
        self._over = True  # the WebSocket protocol forbids sending after a close
        await self._websocket.close(code, reason)

    async def _write(self) -> None:
        try:
            while True:
                await self._filled.wait()
                if self._over:
                    return
                self._filled.clear()
                messages, self._outbox = self._outbox, []
                await self._websocket.send_bytes(pack_frame(messages))
                self._emptied.set()
        except WebSocketDisconnect:
            self._over = True
            self._emptied.set()

    def _take(self, group: asyncio.TaskGroup, message: Incoming) -> None:
        match message.request:
            case CallItem() as item:
                group.create_task(self._call(message.number, item))
            case StreamOpen() as opening:
                try:
                    if opening.tool_set:
                        self._host.add_tool_sets({opening.session.digest: opening.tool_set})
                except ValueError as error:
                    fault = WireError(kind="bad_request", message=str(error))
                    self._fail(message.number, fault)
                else:
                    group.create_task(self._open(message.number, opening))
            case WireError() as error:
                self._fail(message.number, error)
            case closing:
                self._sessions.difference_update(closing.ids)
                closed = CloseResponse(closed=self._host.close(closing.ids))
                self._reply(message.number, "closed", closed)

    async def _open(self, number: int, opening: StreamOpen) -> None:
        opened = await self._host.open_session(opening.session)
        if opened.error:
            self._fail(number, opened.error)
            return
        if self._over:
            self._host.close([opened.id])
            return
        self._sessions.add(opened.id)
        self._reply(number, "opened", opened)

    async def _call(self, number: int, item: CallItem) -> None:
        result = await self._host.call(0, item)
        if result.error:
            self._fail(number, result.error)
        else:
            self._reply(number, "answers", result.answers)

    def _fail(self, number: int, error: WireError) -> None:
        self._reply(number, "error", error)

    def _reply(self, number: int, kind: str, body: BaseModel | Sequence[BaseModel]) -> None:
        self._outbox.append(pack_message(number, kind, body))
        self._filled.set()
