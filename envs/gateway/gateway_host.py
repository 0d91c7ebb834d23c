"""Sessions for the gateways of a server that serves tasks; their tool sets may be of any kind.

The native routes take tool sets from unknown clients, so their host runs only Python code. The tool
sets of the served tasks come from the user who started the server, so these may also have an
endpoint or an adaptation.
"""

import asyncio
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envs.config import ToolServerConfig
from envs.endpoints import McpStdioEndpoint
from envs.errors import DeadlineError, InfraError, ToolServerError
from envs.server.idle import IdleSweep
from envs.server.session_host import SessionHost, run_to_completion
from envs.server.wire import (
    CallItem,
    CallResult,
    Health,
    OpenedSession,
    OpenItem,
    WireError,
    encoded_call,
)
from envs.services.router import ToolRouter
from envs.tools import SessionPurpose, ToolAnswer, ToolCall, ToolSession, ToolSet


@dataclass(slots=True)
class _Entry:
    session: ToolSession
    used_at: float
    processes: int
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class GatewayHost:
    """A SessionHost that passes Python code to `inner`, and other tool sets to a ToolRouter.

    `variables` are environment variables; ToolRouter says what they are used for.
    """

    def __init__(
        self, inner: SessionHost, config: ToolServerConfig, variables: Mapping[str, str]
    ) -> None:
        self._inner = inner
        self._services = ToolRouter(InProcessTools(inner), config, variables)
        self._config = config
        self._opening = 0
        self._processes = 0
        """Processes of MCP servers that were started and have not ended."""
        self._tool_sets: dict[str, ToolSet] = {}
        self._entries: dict[str, _Entry] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._idle_sweep = IdleSweep(config.session_idle_s, self._last_used, self.close)

    async def start(self) -> None:
        """Start the inner host, and start to close idle sessions.

        Raises what `inner.start` raises.
        """
        await self._inner.start()
        self._idle_sweep.start()

    async def stop(self) -> None:
        """End every session."""
        await self._idle_sweep.stop()
        self.close(list(self._entries))
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._services.close()
        await self._inner.stop()

    def add_tool_sets(self, tool_sets: dict[str, ToolSet]) -> None:
        """Cache the sets of the served tasks.

        Raises ValueError if a digest does not match its set.
        """
        code = {digest: each for digest, each in tool_sets.items() if each.sandboxed}
        self._inner.add_tool_sets(code)
        self._tool_sets |= {key: each for key, each in tool_sets.items() if key not in code}

    def unknown_digests(self, items: Sequence[OpenItem]) -> list[str]:
        """Return the digests of `items` whose content must be sent (again)."""
        code = [item for item in items if item.digest not in self._tool_sets]
        return self._inner.unknown_digests(code)

    async def open_session(self, item: OpenItem) -> OpenedSession:
        """Open a session in the initial state of its tool set."""
        tool_set = self._tool_sets.get(item.digest)
        if tool_set is None:
            return await self._inner.open_session(item)
        processes = _processes_of(tool_set)
        if full := self._full(processes):
            return OpenedSession(error=full)
        self._opening += 1
        self._processes += processes
        try:
            session = await self._services.open_session(
                tool_set, item.seed, item.purpose, item.episode
            )
        except BaseException as error:
            self._processes -= processes
            if isinstance(error, InfraError | DeadlineError):
                return OpenedSession(error=WireError(kind="sandbox", message=str(error)))
            raise
        finally:
            self._opening -= 1
        session_id = secrets.token_hex(12)
        self._entries[session_id] = _Entry(session, _now(), processes)
        return OpenedSession(id=session_id, isolation=session.isolation)

    def _full(self, processes: int) -> WireError | None:
        """Return why no further session can be opened that needs so many processes."""
        most, message = self._config.max_sessions, ""
        if len(self._entries) + self._opening >= most:
            message = f"all {most} sessions are in use (tools.max_sessions)"
        elif processes and self._processes + processes > self._config.max_processes:
            message = (
                f"{self._processes} processes of MCP servers are running, of "
                f"{self._config.max_processes} at most (tools.max_processes)"
            )
        if not message:
            return None
        return WireError(kind="full", message=f"{message}; close some or wait", retry_after_s=1.0)

    def knows(self, session_id: str) -> bool:
        return session_id in self._entries or self._inner.knows(session_id)

    async def call(self, index: int, item: CallItem) -> CallResult:
        """Run the calls of one session in order."""
        entry = self._entries.get(item.session)
        if entry is None:
            return await self._inner.call(index, item)
        calls = [
            ToolCall(name=call.name, arguments=json.loads(call.arguments)) for call in item.calls
        ]
        async with entry.lock:
            try:
                answers = await entry.session.call(calls)
            except (InfraError, DeadlineError) as error:
                failure = WireError(kind="sandbox", message=str(error))
                return CallResult(index=index, error=failure)
            finally:
                entry.used_at = _now()
        return CallResult(index=index, answers=tuple(answers))

    def close(self, session_ids: Sequence[str]) -> int:
        """End sessions; return how many of them were open."""
        entries = [(name, self._entries.pop(name, None)) for name in session_ids]
        for _, entry in entries:
            if entry:
                closing = asyncio.create_task(self._end(entry))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
        rest = [name for name, entry in entries if entry is None]
        return len(entries) - len(rest) + self._inner.close(rest)

    async def _end(self, entry: _Entry) -> None:
        try:
            await entry.session.close()
        finally:
            self._processes -= entry.processes

    async def health(self) -> Health:
        """Return the state of the inner host."""
        return await self._inner.health()

    def _last_used(self) -> dict[str, float]:
        return {
            name: entry.used_at for name, entry in self._entries.items() if not entry.lock.locked()
        }


class InProcessTools:
    """ToolService on a SessionHost in the same process."""

    def __init__(self, host: SessionHost) -> None:
        self._host = host

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> ToolSession:
        """Open a session in its initial state. Raises ToolServerError."""
        item = OpenItem(digest=tool_set.digest, seed=seed, purpose=purpose, episode=episode)
        if self._host.unknown_digests([item]):
            self._host.add_tool_sets({tool_set.digest: tool_set})
        opened = await self._host.open_session(item)
        if opened.error:
            raise ToolServerError(f"{opened.error.kind}: {opened.error.message}")
        return InProcessSession(self._host, opened)

    async def close(self) -> None:
        """Do nothing: the owner of the host stops it."""


class InProcessSession:
    """ToolSession of a SessionHost in the same process."""

    def __init__(self, host: SessionHost, opened: OpenedSession) -> None:
        self._host = host
        self._opened = opened

    @property
    def id(self) -> str:
        return self._opened.id

    @property
    def isolation(self) -> str:
        return self._opened.isolation

    @property
    def server(self) -> str:
        return "this process"

    async def call(self, calls: Sequence[ToolCall]) -> list[ToolAnswer]:
        """Run `calls` in order; one answer per call. Raises ToolServerError."""
        wire = tuple(encoded_call(call) for call in calls)
        item = CallItem(session=self.id, calls=wire)
        result = await run_to_completion(self._host.call(0, item))
        if result.error:
            raise ToolServerError(f"{result.error.kind}: {result.error.message}")
        return list(result.answers)

    async def close(self) -> None:
        """End the session; harmless if it has ended."""
        self._host.close([self.id])


def _processes_of(tool_set: ToolSet) -> int:
    """Return how many processes a session on this set starts outside of the sandbox."""
    root = tool_set.root
    if root.parts:
        return sum(_processes_of(part) for part in root.parts)
    return int(isinstance(root.endpoint, McpStdioEndpoint))


def _now() -> float:
    return asyncio.get_running_loop().time()
