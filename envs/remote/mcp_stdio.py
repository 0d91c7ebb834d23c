"""An MCP server as a child process: its environment, its process group and a limit on messages.

The client library's own transport passes variables of this process on, and buffers a line of any
length; this one does neither.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp.types import ErrorData, JSONRPCError, JSONRPCRequest, jsonrpc_message_adapter
from pydantic import ValidationError

from envs.endpoints import McpStdioEndpoint
from envs.errors import ToolServerError

REPLY_TOO_LONG = -32099
"""Code of the error that replaces a reply over the limit."""
_INHERITED = ("HOME", "PATH")
_CHUNK = 65_536
_QUEUED = 64
"""Messages that may wait for a server that does not read; a session never has so many."""
_REAP_S = 5.0

Received = MemoryObjectReceiveStream[SessionMessage | Exception]
Streams = tuple[Received, MemoryObjectSendStream[SessionMessage]]


@asynccontextmanager
async def stdio_streams(
    endpoint: McpStdioEndpoint, variables: Mapping[str, str], line_bytes: int
) -> AsyncGenerator[Streams, None]:
    """Run the server while the context is open; when it closes, the process group is killed.

    Raises ToolServerError if the server cannot be started. A process that leaves the group, as a
    daemon does, is not killed.
    """
    inherited = {name: variables[name] for name in _INHERITED if name in variables}
    try:
        process = await asyncio.create_subprocess_exec(
            *endpoint.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**inherited, **endpoint.environment},
            cwd=endpoint.folder or None,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise ToolServerError(f"MCP server {endpoint.place!r} does not start: {error}") from error
    connection = _Connection(process, line_bytes)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.read)
            tasks.start_soon(connection.write)
            yield connection.received, connection.outgoing
            tasks.cancel_scope.cancel()
    finally:
        # safe after the leader's end: a group's number is not reused while it has a member
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        connection.close()
        with anyio.CancelScope(shield=True), anyio.move_on_after(_REAP_S):
            await process.wait()


class _Connection:
    """Messages to and from one process, one line of JSON each."""

    def __init__(self, process: asyncio.subprocess.Process, line_bytes: int) -> None:
        assert process.stdin is not None, "opened with a pipe"
        assert process.stdout is not None, "opened with a pipe"
        self._stdin, self._stdout = process.stdin, process.stdout
        self._line_bytes = line_bytes
        self._asked: int | str | None = None
        self._deliver, self.received = anyio.create_memory_object_stream[
            SessionMessage | Exception
        ](_QUEUED)
        self.outgoing, self._to_write = anyio.create_memory_object_stream[SessionMessage](_QUEUED)

    async def read(self) -> None:
        """Deliver messages until the process closes its output; then the session ends."""
        line, dropping = bytearray(), False
        async with self._deliver:
            while part := await self._stdout.read(_CHUNK):
                *ends, rest = part.split(b"\n")
                for end in ends:
                    if not dropping and len(line) + len(end) <= self._line_bytes:
                        await self._message(bytes(line + end))
                    elif not dropping:
                        await self._too_long()
                    line, dropping = bytearray(), False
                if dropping:
                    continue
                line += rest
                if len(line) > self._line_bytes:
                    await self._too_long()
                    line, dropping = bytearray(), True

    async def write(self) -> None:
        """Write messages until the session or the process ends."""
        with contextlib.suppress(ConnectionError, anyio.EndOfStream):
            async for item in self._to_write:
                if isinstance(item.message, JSONRPCRequest):
                    self._asked = item.message.id
                text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                self._stdin.write(text.encode() + b"\n")
                await self._stdin.drain()

    def close(self) -> None:
        for stream in (self._deliver, self.received, self.outgoing, self._to_write):
            stream.close()
        self._stdin.close()

    async def _message(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValidationError:
            return  # output that is no message, such as a print; a lost answer meets its deadline
        await self._send(SessionMessage(message))

    async def _too_long(self) -> None:
        """Answer the pending request with an error, because its real answer was dropped."""
        if self._asked is not None:
            text = f"the reply is longer than {self._line_bytes} bytes"
            error = ErrorData(code=REPLY_TOO_LONG, message=text)
            await self._send(
                SessionMessage(JSONRPCError(jsonrpc="2.0", id=self._asked, error=error))
            )

    async def _send(self, item: SessionMessage) -> None:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._deliver.send(item)
