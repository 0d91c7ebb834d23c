"""A ToolService that opens each session on the least loaded running server."""

import asyncio
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cluster.fleet.server_supervisor import (
    Directory,
    DirectorySource,
    ServerAddress,
    ServersSpec,
    ServerSupervisor,
)
from envs.config import ToolServerConfig
from envs.errors import DeadlineError, InfraError, ServerFullError, ToolServerError
from envs.server.client import ToolClient
from envs.server.connection import ConnectionLost
from envs.services.wrapper import SessionWrapper
from envs.tools import SessionPurpose, ToolSession, ToolSet

_ASK_AGAIN_S = 1.0
_TRY_AGAIN_S = 1.0
_UNKNOWN = -1


@dataclass(slots=True)
class _Route:
    """A running server, and the number of sessions that are open on it or being opened."""

    client: ToolClient
    sessions: int = 0


class BalancedTools:
    """ToolService on the tool servers of any number of nodes.

    A session stays on its server. If the server is lost, every call of the session raises
    ToolServerError, at the latest when the supervisor drops the server; a call is never repeated.
    Opening a session tries other servers if one cannot be reached, for `request_timeout_s`.
    """

    def __init__(
        self, sources: Sequence[DirectorySource], config: ToolServerConfig, first: int = 0
    ) -> None:
        """`first` breaks ties between equally loaded servers; give each service another one."""
        self._sources = sources
        self._config = config
        self._first = first
        self._routes: list[dict[str, _Route]] = [{} for _ in sources]
        self._failure = "the directory never listed one"
        self._following: list[asyncio.Task[None]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    @property
    def session_counts(self) -> dict[str, int]:
        """Number of sessions of this service, by name of the server."""
        return {name: r.sessions for routes in self._routes for name, r in routes.items()}

    async def start(self) -> None:
        """Wait for a running server. Raises ToolServerError if none appears in time."""
        self._following = [
            asyncio.create_task(self._follow(index)) for index in range(len(self._sources))
        ]
        await self._wait_for_a_server()

    async def open_session(
        self, tool_set: ToolSet, seed: int, purpose: SessionPurpose, episode: str = ""
    ) -> ToolSession:
        """Open a session in its initial state.

        Raises ToolServerError (a running server refused, or none ran in time) or DeadlineError.
        """
        deadline = asyncio.get_running_loop().time() + self._config.request_timeout_s
        tried: dict[str, ToolServerError] = {}
        while True:
            route = self._least_loaded(tried)
            if route is None:
                await self._wait_for_another(tried, deadline)
                continue
            route.sessions += 1
            try:
                session = await route.client.open_session(tool_set, seed, purpose, episode)
            except ToolServerError as error:
                route.sessions -= 1
                tried[route.client.name] = error
            except BaseException:
                route.sessions -= 1
                raise
            else:
                return _RoutedSession(session, route)

    async def close(self) -> None:
        """Close the connections; the servers keep running."""
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        for index in range(len(self._sources)):
            self._update(index, ())
        await asyncio.gather(*self._closing, return_exceptions=True)

    # Routes

    def _names(self) -> set[str]:
        return {name for routes in self._routes for name in routes}

    def _least_loaded(self, tried: Container[str]) -> _Route | None:
        routes = [r for routes in self._routes for name, r in routes.items() if name not in tried]
        start = self._first % max(len(routes), 1)
        return min(routes[start:] + routes[:start], key=lambda r: r.sessions, default=None)

    async def _wait_for_another(self, tried: dict[str, ToolServerError], deadline: float) -> None:
        """Wait for a server that was not tried; after `_TRY_AGAIN_S`, allow all of them again.

        Servers that are full are no reason to give up before the deadline.
        """
        names = self._names()
        refusals = [
            error
            for name, error in tried.items()
            if name in names and not isinstance(error, ConnectionLost | ServerFullError)
        ]
        if refusals:
            raise refusals[0]
        left_s = deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            full = (error for error in tried.values() if isinstance(error, ServerFullError))
            raise next(full, self._no_server())
        try:
            async with asyncio.timeout(min(left_s, _TRY_AGAIN_S)), self._changed:
                await self._changed.wait_for(lambda: self._names() - tried.keys())
        except TimeoutError:
            tried.clear()

    async def _wait_for_a_server(self) -> None:
        try:
            async with asyncio.timeout(self._config.request_timeout_s), self._changed:
                await self._changed.wait_for(self._names)
        except TimeoutError:
            raise self._no_server() from None

    def _no_server(self) -> ToolServerError:
        limit_s = self._config.request_timeout_s
        return ToolServerError(
            f"no tool server is running, and none started within {limit_s:g} s: {self._failure}"
        )

    async def _follow(self, index: int) -> None:
        """Keep the routes to one node's servers up to date."""
        known = _UNKNOWN
        while True:
            try:
                directory = await self._sources[index].directory(known)
            except (InfraError, DeadlineError) as error:
                directory = Directory(_UNKNOWN, (), str(error))
            self._failure = directory.failure or self._failure
            self._update(index, directory.servers)
            async with self._changed:
                self._changed.notify_all()
            known = directory.version
            if known == _UNKNOWN:
                await asyncio.sleep(_ASK_AGAIN_S)

    def _update(self, index: int, servers: Sequence[ServerAddress]) -> None:
        old, new = self._routes[index], {}
        for server in servers:
            route = old.pop(server.name, None)
            if route is None:
                client = ToolClient(server.address, self._config, server.token, server.name)
                route = _Route(client)
            new[server.name] = route
        self._routes[index] = new
        for route in old.values():
            task = asyncio.create_task(route.client.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


class _RoutedSession(SessionWrapper):
    """A session that counts towards its server's load until it is closed."""

    def __init__(self, session: ToolSession, route: _Route) -> None:
        super().__init__(session)
        self._route = route
        self._counted = True

    async def close(self) -> None:
        """End the session; does not raise if its server is gone."""
        if self._counted:
            self._counted = False
            self._route.sessions -= 1
        with suppress(ToolServerError, DeadlineError):
            await super().close()


class LocalTools(BalancedTools):
    """ToolService on servers that this process starts and supervises."""

    def __init__(self, name: str, config: ToolServerConfig, count: int = 1) -> None:
        self._servers = ServerSupervisor(ServersSpec(node=name, count=count), config)
        super().__init__([self._servers], config)

    async def start(self) -> None:
        """Start the servers. Raises ToolServerError, DeadlineError, IsolationError."""
        await self._servers.start()
        await super().start()

    async def close(self) -> None:
        await super().close()
        await self._servers.close()
