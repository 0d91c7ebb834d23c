"""The tool servers of one node: kept running, watched, and named to those who route to them.

No Ray. A server that dies is noticed through its pidfd at once, one that does not answer after
`max_misses` health checks; either leaves the directory first, and is then replaced.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import httpx

from envs.config import ToolServerConfig
from envs.errors import InfraError, TrialrunError
from envs.server.process import ToolServerProcess

logger = logging.getLogger("trialrun")

POLL_S = 20.0
"""Longest wait for news of a directory; then the old one is answered again."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A living tool server: `unix:/path` or `http://host:port`, and the bearer token, if any."""

    name: str
    """`node/slot.pid`; another process has another name."""
    address: str
    token: str


@dataclass(frozen=True, slots=True)
class Directory:
    """The servers to route to; `version` changes with them."""

    version: int
    servers: tuple[ServerAddress, ...]
    failure: str = ""
    """Why the server that was lost last was lost."""


class DirectorySource(Protocol):
    """Who knows the servers of a node: their supervisor, here or on the node."""

    async def directory(self, known: int) -> Directory:
        """Return the directory, once it is another than version `known` or `POLL_S` are over.

        Raises InfraError where nobody answers.
        """
        ...


@dataclass(frozen=True, slots=True)
class ServersPlan:
    """How many servers a node runs and where they listen."""

    node: str
    """Name of the node in the names of its servers."""
    count: int = 1
    host: str = ""
    """Address of the node to listen on by TCP; empty for UNIX sockets."""
    token: str = ""
    """Bearer token, needed off loopback."""


@dataclass(frozen=True, slots=True)
class SupervisorTiming:
    """Seconds and counts of the supervision; the wait before the n-th restart in a row doubles."""

    health_every_s: float = 2.0
    health_timeout_s: float = 3.0
    max_misses: int = 2
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    start_timeout_s: float = 60.0
    stable_after_s: float = 60.0
    """A server that lived so long starts the count of its slot's failures anew."""


class ServerSupervisor:
    """Keeps `plan.count` tool servers running until it is closed; a DirectorySource."""

    def __init__(
        self, plan: ServersPlan, config: ToolServerConfig, timing: SupervisorTiming | None = None
    ) -> None:
        self._plan = plan
        self._config = config
        self._timing = timing or SupervisorTiming()
        self._living: dict[int, ServerAddress] = {}
        self._slots: list[asyncio.Task[None]] = []
        self._version = 0
        self._failure = ""
        self._changed = asyncio.Condition()
        self._pids: dict[int, int] = {}
        self.losses = 0

    @property
    def pids(self) -> dict[int, int]:
        """Process of the living server of each slot."""
        return dict(self._pids)

    async def start(self) -> None:
        """Start all servers and wait until each serves.

        Raises what kept a server from starting (IsolationError, ToolServerError, DeadlineError)
        where none of them starts.
        """
        loop = asyncio.get_running_loop()
        first = [loop.create_future() for _ in range(self._plan.count)]
        self._slots = [
            asyncio.create_task(self._tend(slot, started), name=f"tool-server-{slot}")
            for slot, started in enumerate(first)
        ]
        failures = [failure for failure in await asyncio.gather(*first) if failure is not None]
        if len(failures) == self._plan.count:
            await self.close()
            raise failures[0]

    async def directory(self, known: int) -> Directory:
        """See DirectorySource."""
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S), self._changed:
                await self._changed.wait_for(lambda: self._version != known)
        servers = tuple(self._living[slot] for slot in sorted(self._living))
        return Directory(self._version, servers, self._failure)

    async def close(self) -> None:
        """End all servers; what clients have open on them is lost."""
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)
        self._slots.clear()

    # One slot: start, serve, watch, and again

    async def _tend(self, slot: int, first: "asyncio.Future[TrialrunError | None]") -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                async with self._running_server() as process:
                    await self._enlist(slot, process)
                    if not first.done():
                        first.set_result(None)
                    reason = await self._watch(process)
                    await self._strike(slot, reason)
                    _kill(process)
            except (TrialrunError, OSError) as error:
                reason = f"{type(error).__name__}: {error}"
                await self._strike(slot, reason)
                if not first.done():
                    first.set_result(_typed(error))
            finally:
                self._living.pop(slot, None)
                self._pids.pop(slot, None)
            lived_s = time.monotonic() - began
            failures = 1 if lived_s >= self._timing.stable_after_s else failures + 1
            logger.warning(
                "tool server %s/%d lost after %.1f s: %s", self._plan.node, slot, lived_s, reason
            )
            wait_s = self._timing.backoff_s * 2 ** min(failures - 1, 16)
            await asyncio.sleep(min(wait_s, self._timing.max_backoff_s))

    @asynccontextmanager
    async def _running_server(self) -> AsyncIterator[ToolServerProcess]:
        plan = self._plan
        process = ToolServerProcess(
            self._config, self._timing.start_timeout_s, plan.host, plan.token
        )
        starting = asyncio.ensure_future(asyncio.to_thread(process.start))
        try:
            try:
                await asyncio.shield(starting)
            except asyncio.CancelledError:  # the thread goes on, and so would its process
                await asyncio.gather(starting, return_exceptions=True)
                raise
            yield process
        finally:
            await asyncio.shield(asyncio.to_thread(process.stop))

    async def _enlist(self, slot: int, process: ToolServerProcess) -> None:
        assert process.pid is not None, "it was started"
        name = f"{self._plan.node}/{slot}.{process.pid}"
        self._pids[slot] = process.pid
        self._living[slot] = ServerAddress(name, process.address, self._plan.token)
        await self._notify()

    async def _strike(self, slot: int, reason: str) -> None:
        """Take the server out of the directory."""
        self.losses += 1
        self._failure = reason
        self._living.pop(slot, None)
        self._pids.pop(slot, None)
        await self._notify()

    async def _notify(self) -> None:
        self._version += 1
        async with self._changed:
            self._changed.notify_all()

    async def _watch(self, process: ToolServerProcess) -> str:
        """Wait until the server is dead or fails its health checks; return what happened."""
        timing, misses = self._timing, 0
        async with _death(process) as dead, _health_client(process, self._plan.token) as client:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(timing.health_every_s):
                        await dead.wait()
                    return f"its process {process.pid} ended: {process.stderr()[-500:]}"
                trouble = await self._ask_health(client)
                misses = misses + 1 if trouble else 0
                if misses >= timing.max_misses:
                    return f"{misses} health checks in a row failed: {trouble}"

    async def _ask_health(self, client: httpx.AsyncClient) -> str:
        """Return what is wrong, or nothing."""
        try:
            async with asyncio.timeout(self._timing.health_timeout_s):
                response = await client.get("/health")
        except TimeoutError:
            return f"no answer within {self._timing.health_timeout_s:g} s"
        except httpx.HTTPError as error:
            return repr(error)
        return "" if response.status_code == 200 else f"status {response.status_code}"


@asynccontextmanager
async def _death(process: ToolServerProcess) -> AsyncIterator[asyncio.Event]:
    """An event that is set when the process ends."""
    assert process.pid is not None, "it was started"
    loop, dead = asyncio.get_running_loop(), asyncio.Event()
    descriptor = os.pidfd_open(process.pid)
    loop.add_reader(descriptor, dead.set)
    try:
        yield dead
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _health_client(process: ToolServerProcess, token: str) -> httpx.AsyncClient:
    socket_path = process.address.removeprefix("unix:")
    local = socket_path != process.address
    return httpx.AsyncClient(
        base_url="http://tool-server" if local else process.address,
        transport=httpx.AsyncHTTPTransport(uds=socket_path if local else None),
        headers={"authorization": f"Bearer {token}"} if token else {},
        timeout=None,  # every check has its deadline
        trust_env=False,
    )


def _kill(process: ToolServerProcess) -> None:
    """End a server that does not answer without waiting for its goodwill."""
    if process.pid is not None and process.alive:
        os.kill(process.pid, signal.SIGKILL)


def _typed(error: TrialrunError | OSError) -> TrialrunError:
    return error if isinstance(error, TrialrunError) else InfraError(repr(error))
