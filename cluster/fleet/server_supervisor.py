"""Supervision of one node's tool servers, and the directory that clients route by. No Ray.

The death of a server is noticed at once through its pidfd. One that does not answer a health check
is looked at: if it is stopped or computes nothing it is replaced within 10 seconds, if it is busy
after `busy_timeout_s`. A lost server first leaves the directory and is then replaced.
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

from cluster.fleet.health.heartbeat import NoAnswer, Patience, await_answer
from cluster.fleet.health.vitals import Vital, vital_of
from cluster.fleet.supervision import RestartPolicy, Supervision
from envs.config import ToolServerConfig
from envs.errors import InfraError, TrialrunError
from envs.server.process import ToolServerProcess

logger = logging.getLogger("trialrun")

POLL_S = 20.0
"""Longest wait for a change of a directory; after it the unchanged one is returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """How to reach a running tool server."""

    name: str
    """`node/slot.pid`, so a replacement has another name."""
    address: str
    """`unix:/path` or `http://host:port`."""
    token: str
    """Bearer token; empty for none."""


@dataclass(frozen=True, slots=True)
class Directory:
    """The servers to route to."""

    version: int
    """Changes with every change of `servers`."""
    servers: tuple[ServerAddress, ...]
    failure: str = ""
    """Why the most recently lost server was lost."""


class DirectorySource(Protocol):
    """Source of a node's directory: the supervisor in this process, or a proxy for a remote one."""

    async def directory(self, known: int) -> Directory:
        """Return the directory once its version differs from `known`, or after `POLL_S`.

        Raises InfraError if the supervisor does not answer.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServersSpec:
    """How many tool servers a node runs, and where they listen."""

    node: str
    """Name of the node in the names of its servers."""
    count: int = 1
    host: str = ""
    """TCP address to listen on; empty for UNIX sockets."""
    token: str = ""
    """Bearer token; required for addresses other than loopback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorTiming:
    """Intervals and deadlines of the supervision, in seconds, and limits."""

    health_every_s: float = 2.0
    health_timeout_s: float = 3.0
    max_misses: int = 2
    """Refused or failed health checks in a row after which a server is replaced."""
    busy_timeout_s: float = 20.0
    """Time that a server which computes may take to answer a health check."""
    backoff_s: float = 0.25
    """Wait before a lost server is replaced; it doubles with every failure in a row."""
    max_backoff_s: float = 30.0
    start_timeout_s: float = 60.0
    stable_after_s: float = 60.0
    """After this lifetime the loss of a server is not counted as a failure of its slot."""


class ServerSupervisor:
    """Keeps `spec.count` tool servers running until it is closed; a DirectorySource."""

    def __init__(
        self, spec: ServersSpec, config: ToolServerConfig, timing: SupervisorTiming | None = None
    ) -> None:
        self._spec = spec
        self._config = config
        self._timing = timing or SupervisorTiming()
        self._supervision = Supervision(
            RestartPolicy(
                backoff_s=self._timing.backoff_s,
                max_backoff_s=self._timing.max_backoff_s,
                give_up_after=1,  # only `start` gives up, after the first try of every server
            )
        )
        self._living: dict[int, ServerAddress] = {}
        self._slots: list[asyncio.Task[None]] = []
        self._version = 0
        self._failure = ""
        self._changed = asyncio.Condition()
        self._pids: dict[int, int] = {}

    @property
    def losses(self) -> int:
        """Servers lost so far, those that did not start included."""
        return self._supervision.losses

    @property
    def pids(self) -> dict[int, int]:
        """Process id of the running server of each slot."""
        return dict(self._pids)

    async def start(self) -> None:
        """Start all servers and wait for the first try of each.

        If none of them starts, raises the reason of the first: IsolationError, ToolServerError or
        DeadlineError.
        """
        loop = asyncio.get_running_loop()
        first_tries = [loop.create_future() for _ in range(self._spec.count)]
        for slot, first_try in enumerate(first_tries):
            self._supervision.add(slot)
            self._slots.append(
                asyncio.create_task(self._supervise(slot, first_try), name=f"tool-server-{slot}")
            )
        tries = await asyncio.gather(*first_tries)
        failures = [failure for failure in tries if failure is not None]
        if failures and self._supervision.hopeless(1):
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
        """End all servers, and with them the sessions that clients have open."""
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)
        self._slots.clear()

    # Supervision of one slot: start, list, watch; then again

    async def _supervise(
        self, slot: int, first_try: "asyncio.Future[TrialrunError | None]"
    ) -> None:
        while True:
            started_at = time.monotonic()
            failure: TrialrunError | None = None
            try:
                async with self._running_server() as process:
                    await self._list(slot, process)
                    if not first_try.done():
                        first_try.set_result(None)
                    reason = await self._watch(process)
                    # Out of the directory before it is ended: clients then drop their sessions at
                    # once instead of waiting for a server that hangs.
                    await self._unlist(slot, reason)
                    _kill(process)
            except (TrialrunError, OSError) as error:
                reason = f"{type(error).__name__}: {error}"
                failure = error if isinstance(error, TrialrunError) else InfraError(repr(error))
                await self._unlist(slot, reason)
            finally:  # cancelled or not
                self._living.pop(slot, None)
                self._pids.pop(slot, None)
            lived_s = time.monotonic() - started_at
            stable = lived_s >= self._timing.stable_after_s
            decision = self._supervision.lost(slot, reason, stable=stable)
            logger.warning(
                "tool server %s/%d lost after %.1f s: %s", self._spec.node, slot, lived_s, reason
            )
            if not first_try.done():
                first_try.set_result(failure)
            await asyncio.sleep(decision.wait_s)

    @asynccontextmanager
    async def _running_server(self) -> AsyncIterator[ToolServerProcess]:
        spec = self._spec
        process = ToolServerProcess(
            self._config, self._timing.start_timeout_s, spec.host, spec.token
        )
        starting = asyncio.ensure_future(asyncio.to_thread(process.start))
        try:
            try:
                await asyncio.shield(starting)
            except asyncio.CancelledError:  # the thread cannot be cancelled: wait, then stop it
                await asyncio.gather(starting, return_exceptions=True)
                raise
            yield process
        finally:
            await asyncio.shield(asyncio.to_thread(process.stop))

    async def _list(self, slot: int, process: ToolServerProcess) -> None:
        assert process.pid is not None, "the server was started"
        name = f"{self._spec.node}/{slot}.{process.pid}"
        self._pids[slot] = process.pid
        self._living[slot] = ServerAddress(
            name=name, address=process.address, token=self._spec.token
        )
        await self._notify()

    async def _unlist(self, slot: int, reason: str) -> None:
        """Take the server out of the directory."""
        self._failure = reason
        self._living.pop(slot, None)
        self._pids.pop(slot, None)
        await self._notify()

    async def _notify(self) -> None:
        self._version += 1
        async with self._changed:
            self._changed.notify_all()

    async def _watch(self, process: ToolServerProcess) -> str:
        """Wait until the server ends or fails its health checks; return what happened."""
        timing, misses, restarts = self._timing, 0, 0
        async with _death(process) as dead, _health_client(process, self._spec.token) as client:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(timing.health_every_s):
                        await dead.wait()
                    return f"its process {process.pid} ended: {process.stderr()[-500:]}"
                try:
                    problem, found = await self._check_health(client, process)
                except NoAnswer as error:
                    return f"its process {process.pid} is lost: {error}"
                if found > restarts:
                    restarts = found
                    logger.warning(
                        "tool server %s.%d replaced its fork server, which died or hung; the "
                        "sessions below it are lost",
                        self._spec.node,
                        process.pid,
                    )
                misses = misses + 1 if problem else 0
                if misses >= timing.max_misses:
                    return f"{misses} health checks in a row failed: {problem}"

    async def _check_health(
        self, client: httpx.AsyncClient, process: ToolServerProcess
    ) -> tuple[str, int]:
        """Return what is wrong with the server, empty if nothing is, and how often it has replaced
        its fork server. Raises NoAnswer.
        """

        async def look() -> Vital:
            return vital_of(process.pid or 0)

        timing = self._timing
        patience = Patience(answer_s=timing.health_timeout_s, limit_s=timing.busy_timeout_s)
        try:
            response = await await_answer(client.get("/health"), look, patience)
        except httpx.HTTPError as error:
            return repr(error), 0
        if response.status_code != 200:
            return f"status {response.status_code}", 0
        return "", int(response.json().get("zygote_restarts", 0))


@asynccontextmanager
async def _death(process: ToolServerProcess) -> AsyncIterator[asyncio.Event]:
    """Yield an event that is set when the process ends."""
    assert process.pid is not None, "the server was started"
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
        timeout=None,  # every check has a deadline
        trust_env=False,
    )


def _kill(process: ToolServerProcess) -> None:
    """End a server at once: one that hangs would not react to a request to stop."""
    if process.pid is not None and process.alive:
        os.kill(process.pid, signal.SIGKILL)
