"""An MCP server as a child process: its environment, its folder, its process group and a limit on
messages.

The client library's own transport passes variables of this process on, and buffers a line of any
length; this one does neither.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from mcp.shared.message import SessionMessage
from mcp.types import ErrorData, JSONRPCError, JSONRPCRequest, jsonrpc_message_adapter
from pydantic import ValidationError

from envs.endpoints import SCRATCH, McpStdioEndpoint
from envs.errors import ConfigError, ToolServerError
from envs.remote.mcp_wire import Streams, Wire
from envs.remote.session_folder import session_folder

REPLY_TOO_LONG = -32099
"""Code of the error that replaces a reply over the limit."""
_INHERITED = ("HOME", "PATH")
_CHUNK = 65_536
_QUEUED = 64
"""Messages that may wait for a server that does not read; a session never has so many."""
_REAP_S = 5.0
_LAST_WORDS_S = 0.5
"""How long the end of a process, and of its error output, may come after that of its output."""


def environment_of(endpoint: McpStdioEndpoint, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the user gives the server, without those that every server gets.

    Raises ConfigError where `variables` lacks one that the endpoint names.
    """
    missing = [name for name in endpoint.variables if name not in variables]
    if missing:
        raise ConfigError(
            f"expected the environment variable {missing[0]} for the MCP server {endpoint.place}, "
            "found none: set it where the workers start"
        )
    return {name: variables[name] for name in endpoint.variables} | endpoint.environment


@asynccontextmanager
async def stdio_streams(
    endpoint: McpStdioEndpoint, variables: Mapping[str, str], line_bytes: int, wire: Wire
) -> AsyncGenerator[Streams, None]:
    """Run the server while the context is open; when it closes, the process group is killed, and
    the session's folder is deleted.

    Raises ToolServerError if the server cannot be started. A process that leaves the group, as a
    daemon does, is not killed.
    """
    async with _scratch(endpoint) as folder:
        inherited = {name: variables[name] for name in _INHERITED if name in variables}
        given = environment_of(endpoint, variables)
        environment = {name: text.replace(SCRATCH, folder) for name, text in given.items()}
        launch = _Launch(
            endpoint=endpoint, folder=folder, environment={**inherited, **environment}, wire=wire
        )
        if endpoint.start:
            await launch.prepare()
        async with launch.server() as process:
            connection = _Connection(process, line_bytes, wire)
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(connection.read)
                    tasks.start_soon(connection.write)
                    tasks.start_soon(connection.listen)
                    yield connection.received, connection.outgoing
                    tasks.cancel_scope.cancel()
            finally:
                connection.close()


@asynccontextmanager
async def _scratch(endpoint: McpStdioEndpoint) -> AsyncIterator[str]:
    """Make the folder of a session, if its command uses one, and delete it at the end."""
    texts = (*endpoint.command, *endpoint.start, *endpoint.environment.values())
    if not any(SCRATCH in text for text in texts):
        yield ""
        return
    async with session_folder("trialrun-mcp-") as folder:
        yield folder


@dataclass(frozen=True, slots=True, kw_only=True)
class _Launch:
    """How the processes of one session are started."""

    endpoint: McpStdioEndpoint
    folder: str
    environment: dict[str, str]
    wire: Wire

    async def prepare(self) -> None:
        """Run the command that prepares the session. Raises ToolServerError if it fails."""
        async with self._process(self.endpoint.start, asyncio.subprocess.DEVNULL) as process:
            assert process.stdout is not None, "opened with a pipe"
            while part := await process.stdout.read(_CHUNK):
                self.wire.words.add(part)
            code = await process.wait()
        if code:
            said = f"`start` of the MCP server {self.endpoint.place!r} ended with exit code {code}"
            raise ToolServerError(self.wire.words.after(f"expected exit code 0, {said}"))

    @asynccontextmanager
    async def server(self) -> AsyncIterator[asyncio.subprocess.Process]:
        pipe = asyncio.subprocess.PIPE
        async with self._process(self.endpoint.command, pipe, stderr=pipe) as process:
            yield process

    @asynccontextmanager
    async def _process(
        self, command: Sequence[str], stdin: int, stderr: int = asyncio.subprocess.STDOUT
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run `command` while the context is open. Raises ToolServerError if it does not start."""
        try:
            process = await asyncio.create_subprocess_exec(
                *(text.replace(SCRATCH, self.folder) for text in command),
                stdin=stdin,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env=self.environment,
                cwd=self.endpoint.folder or None,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ToolServerError(
                f"MCP server {self.endpoint.place!r} does not start: {error}"
            ) from error
        try:
            yield process
        finally:
            # safe after the leader's end: a group's number is not reused while it has a member
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with anyio.CancelScope(shield=True), anyio.move_on_after(_REAP_S):
                await process.wait()


class _Connection:
    """Messages to and from one process, one line of JSON each."""

    def __init__(self, process: asyncio.subprocess.Process, line_bytes: int, wire: Wire) -> None:
        assert process.stdin is not None, "opened with a pipe"
        assert process.stdout is not None, "opened with a pipe"
        assert process.stderr is not None, "opened with a pipe"
        self._process = process
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._line_bytes = line_bytes
        self._wire = wire
        self._silent = asyncio.Event()
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
            await self._note_end()

    async def listen(self) -> None:
        """Keep the end of the server's error output; it must be read, or the server would wait."""
        while part := await self._stderr.read(_CHUNK):
            self._wire.words.add(part)
        self._silent.set()

    async def _note_end(self) -> None:
        """Say why there are no more messages, before those who wait for one learn that."""
        with anyio.move_on_after(_LAST_WORDS_S):
            await self._silent.wait()
        with anyio.move_on_after(_LAST_WORDS_S):
            await self._process.wait()
        code = self._process.returncode
        self._wire.lose("it closed its output" if code is None else f"it ended with {_exit(code)}")

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


def _exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
