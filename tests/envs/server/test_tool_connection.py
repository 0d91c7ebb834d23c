"""A connection to a tool server that answers late and hangs up."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, unix_serve

from envs.errors import DeadlineError
from envs.server.connection import ToolConnection
from envs.server.wire import CloseRequest, OpenedSession, pack_frame, pack_message, unpack_frame


async def test_closing_a_session_that_was_given_up_fails_in_silence(tmp_path: Path) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    given_up, asked = asyncio.Event(), list[str]()

    async def answer(socket: ServerConnection) -> None:
        await socket.recv()
        await given_up.wait()
        await socket.send(pack_frame([pack_message(1, "opened", OpenedSession(id="late"))]))
        frame = await socket.recv()
        assert isinstance(frame, bytes)
        asked.extend(kind for _, kind, _ in unpack_frame(frame))

    path = str(tmp_path / "socket")
    async with unix_serve(answer, path):
        connection = await ToolConnection.connect(f"unix:{path}", "", 5.0)
        with pytest.raises(DeadlineError):
            await connection.request("open", CloseRequest(ids=()), 0.01)
        given_up.set()
        async with asyncio.timeout(5):
            while connection.alive:
                await asyncio.sleep(0.01)
        await connection.close()
    gc.collect()
    assert asked == ["close"]
    assert complaints == []
