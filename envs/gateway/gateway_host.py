"""Sessions for the doors of a server that offers tasks: their tool sets may be of any kind.

Native routes take tool sets from strangers, so their host runs Python code only. The sets of the
tasks that the server itself offers are its user's: they may have an endpoint or an adaptation.
"""

import asyncio
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envs.config import ToolServerConfig
from envs.errors import DeadlineError, InfraError, ToolServerError
from envs.server.session_host import SessionHost, to_the_end
from envs.server.wire import (
    CallItem,
    CallResult,
    Health,
    OpenedSession,
    OpenItem,
    WireError,
    wire_call,
)
from envs.services.router import ToolRouter
from envs.tools import SessionPurpose, ToolAnswer, ToolCall, ToolSession, ToolSet


@dataclass(slots=True)
class _Entry:
    session: ToolSession
    used_at: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class GatewayHost:
    """A SessionHost that gives code to `inner`, and all other tool sets to the service of their
    kind; see `ToolRouter` for `variables`.
    """

    def __init__(
        self, inner: SessionHost, config: ToolServerConfig, variables: Mapping[str, str]
    ) -> None:
        self._inner = inner
        self._config = config
        self._services = ToolRouter(HostedTools(inner), config, variables)
        self._tool_sets: dict[str, ToolSet] = {}
        self._entries: dict[str, _Entry] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the inner host. Raises what that raises."""
        await self._inner.start()
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """End every session."""
        if self._sweeper:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        self.close(list(self._entries))
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._services.close()
        await self._inner.stop()

    def add_tool_sets(self, tool_sets: dict[str, ToolSet]) -> None:
        """Remember the sets of the server's own tasks. Raises ValueError (a wrong digest)."""
        code = {digest: each for digest, each in tool_sets.items() if each.sandboxed}
        self._inner.add_tool_sets(code)
        self._tool_sets |= {key: each for key, each in tool_sets.items() if key not in code}

    def unknown_digests(self, items: Sequence[OpenItem]) -> list[str]:
        """Return the digests of `items` whose content must be given (again)."""
        code = [item for item in items if item.digest not in self._tool_sets]
        return self._inner.unknown_digests(code)

    async def open(self, item: OpenItem) -> OpenedSession:
        """Open a session in the initial state of its tool set."""
        tool_set = self._tool_sets.get(item.digest)
        if tool_set is None:
            return await self._inner.open(item)
        try:
            session = await self._services.open(tool_set, item.seed, item.purpose)
        except (InfraError, DeadlineError) as error:
            return OpenedSession(error=WireError(kind="sandbox", message=str(error)))
        session_id = secrets.token_hex(12)
        self._entries[session_id] = _Entry(session, _now())
        return OpenedSession(id=session_id, isolation=session.isolation)

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
                closing = asyncio.create_task(entry.session.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
        rest = [name for name, entry in entries if entry is None]
        return len(entries) - len(rest) + self._inner.close(rest)

    async def health(self) -> Health:
        """Return the state of the inner host."""
        return await self._inner.health()

    async def _sweep(self) -> None:
        """Close idle sessions, for ever; checks four times per idle limit."""
        while True:
            await asyncio.sleep(self._config.session_idle_s / 4)
            oldest = _now() - self._config.session_idle_s
            for name, entry in list(self._entries.items()):
                if entry.used_at < oldest and not entry.lock.locked():
                    self.close([name])


class HostedTools:
    """ToolService on a host in the same process."""

    def __init__(self, host: SessionHost) -> None:
        self._host = host

    async def open(self, tool_set: ToolSet, seed: int, purpose: SessionPurpose) -> ToolSession:
        """Open a session in its initial state. Raises ToolServerError."""
        item = OpenItem(digest=tool_set.digest, seed=seed, purpose=purpose)
        if self._host.unknown_digests([item]):
            self._host.add_tool_sets({tool_set.digest: tool_set})
        opened = await self._host.open(item)
        if opened.error:
            raise ToolServerError(f"{opened.error.kind}: {opened.error.message}")
        return _HostedSession(self._host, opened)

    async def close(self) -> None:
        """The host is its owner's to stop."""


class _HostedSession:
    """A session of a host in the same process; see the Protocol ToolSession."""

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
        wire = tuple(wire_call(call) for call in calls)
        item = CallItem(session=self.id, calls=wire)
        result = await to_the_end(self._host.call(0, item))
        if result.error:
            raise ToolServerError(f"{result.error.kind}: {result.error.message}")
        return list(result.answers)

    async def close(self) -> None:
        """End the session; harmless where it has ended."""
        self._host.close([self.id])


def _now() -> float:
    return asyncio.get_running_loop().time()
