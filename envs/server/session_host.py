"""The Protocols that every gateway of the tool server is built on: sessions and observers."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Protocol

from envs.server.wire import CallItem, CallResult, EncodedCall, Health, OpenedSession, OpenItem
from envs.tools import ToolAnswer, ToolSet

_RUNNING: set[asyncio.Future[CallResult]] = set()
"""Calls that may outlive their callers. The event loop keeps only weak references to its tasks."""


class SessionHost(Protocol):
    """Sessions on cached tool sets.

    `ToolHost` runs tools, `ReplayHost` answers from a record, and `GatewayHost` adds tool sets that
    are not Python code.
    """

    async def start(self) -> None:
        """Prepare to open sessions. Raises IsolationError, SandboxError or StoreError."""
        ...

    async def stop(self) -> None:
        """End every session."""
        ...

    def add_tool_sets(self, tool_sets: dict[str, ToolSet]) -> None:
        """Cache tool sets by digest.

        Raises ValueError if a digest does not match its set, or a set has an endpoint or an
        adaptation.
        """
        ...

    def unknown_digests(self, items: Sequence[OpenItem]) -> list[str]:
        """Return the digests of `items` whose content must be sent (again)."""
        ...

    async def open_session(self, item: OpenItem) -> OpenedSession:
        """Open a session in the initial state of its tool set, whose digest must be known."""
        ...

    def knows(self, session_id: str) -> bool: ...

    async def call(self, index: int, item: CallItem) -> CallResult:
        """Run the calls of one session in order; `index` is copied to the result.

        Cancelling a call loses its session. A caller that may be cancelled awaits the call with
        `run_to_completion`.
        """
        ...

    def close(self, session_ids: Sequence[str]) -> int:
        """End sessions; return how many of them were open."""
        ...

    async def health(self) -> Health: ...


async def run_to_completion(call: Coroutine[None, None, CallResult]) -> CallResult:
    """Await `call`, and let it run to its end even if the caller is cancelled.

    So the session stays in a known state. This costs a task per call: a caller that closes its
    sessions when it is cancelled awaits the call directly instead.
    """
    running = asyncio.ensure_future(call)
    _RUNNING.add(running)
    running.add_done_callback(_RUNNING.discard)
    return await asyncio.shield(running)


class SessionObserver(Protocol):
    """Receives the traffic of a host as it happens.

    Its methods must be quick and must not raise.
    """

    def opened(self, session_id: str, item: OpenItem, tool_set: ToolSet) -> None: ...

    def answered(self, session_id: str, call: EncodedCall, answer: ToolAnswer) -> None: ...

    def closed(self, session_id: str) -> None: ...
