"""What every protocol of the tool server stands on: sessions, whoever answers in them."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Protocol

from envs.server.wire import CallItem, CallResult, Health, OpenedSession, OpenItem, WireCall
from envs.tools import ToolAnswer, ToolSet

_RUNNING: set[asyncio.Future[CallResult]] = set()
"""Calls that outlive their callers; the event loop itself keeps only weak references."""


class SessionHost(Protocol):
    """Sessions on cached tool sets. `ToolHost` runs tools, `ReplayHost` answers from a record."""

    async def start(self) -> None:
        """Get ready to open sessions. Raises IsolationError, SandboxError or StoreError."""
        ...

    async def stop(self) -> None:
        """End every session."""
        ...

    def add_tool_sets(self, tool_sets: dict[str, ToolSet]) -> None:
        """Remember sets by digest. Raises ValueError where a digest is wrong or a set has an
        endpoint or an adaptation.
        """
        ...

    def unknown_digests(self, items: Sequence[OpenItem]) -> list[str]:
        """Return the digests of `items` whose content must be sent (again)."""
        ...

    async def open(self, item: OpenItem) -> OpenedSession:
        """Open a session in the initial state of its tool set, which `unknown_digests` knows."""
        ...

    def knows(self, session_id: str) -> bool: ...

    async def call(self, index: int, item: CallItem) -> CallResult:
        """Run the calls of one session in order; `index` is that of the result.

        A session whose call is cancelled is lost: who may be cancelled asks with `to_the_end`.
        """
        ...

    def close(self, session_ids: Sequence[str]) -> int:
        """End sessions; return how many of them were open."""
        ...

    async def health(self) -> Health: ...


async def to_the_end(call: Coroutine[None, None, CallResult]) -> CallResult:
    """Await `call`, which goes on when the caller is cancelled: its session stays in a known state.

    Costs a task: a caller that ends its sessions when it is cancelled awaits the call itself.
    """
    running = asyncio.ensure_future(call)
    _RUNNING.add(running)
    running.add_done_callback(_RUNNING.discard)
    return await asyncio.shield(running)


class SessionObserver(Protocol):
    """Sees the traffic of a host as it happens; must be quick and must not raise."""

    def opened(self, session_id: str, item: OpenItem, tool_set: ToolSet) -> None: ...

    def answered(self, session_id: str, call: WireCall, answer: ToolAnswer) -> None: ...

    def closed(self, session_id: str) -> None: ...
