"""Tool servers on the nodes of a Ray cluster, under one supervising actor per node."""

import asyncio
import logging
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config.run_config import RunConfig
from cluster.fleet.balanced_tools import BalancedTools, LocalTools
from cluster.fleet.health.kept_warnings import KeptWarnings, say_for
from cluster.fleet.ray_errors import RemoteCall, answer_of
from cluster.fleet.server_supervisor import Directory, ServersSpec, ServerSupervisor
from cluster.fleet.survivors.absence import DriverAbsence
from cluster.fleet.survivors.lasting import ENDS_WITH_DRIVER, Lasting
from envs.config import ToolServerConfig
from envs.errors import InfraError, MissingError, TrialrunError
from envs.seeds import stable_hash

logger = logging.getLogger("trialrun")

_MAX_CALLS = 4096
"""Rollout workers that may wait for changes of one node's directory at once."""
_LOOK_EVERY_S = 5.0
"""Seconds between two looks for nodes that joined."""
_DIRECTORY_CALL = RemoteCall(
    name="the supervisor of a node's tool servers", failure=InfraError, timeout_s=120.0
)
"""The first answer includes the start of the node's servers."""
_WARNINGS_CALL = RemoteCall(
    name="the supervisor of a node's tool servers", failure=InfraError, timeout_s=_LOOK_EVERY_S
)


class ToolServersActor:
    """Ray actor around one node's ServerSupervisor.

    The first call starts it. Ray restarts a dead actor without calling anything, so the same holds
    after a restart.
    """

    def __init__(self, spec: ServersSpec, config: ToolServerConfig, keep_s: float) -> None:
        """`keep_s` is how long it lasts without a driver; 0 where Ray ends it with its driver."""
        self._absence = DriverAbsence(keep_s) if keep_s else None
        self._warnings = KeptWarnings()
        self._servers = ServerSupervisor(spec, config)
        self._starting: asyncio.Task[None] | None = None

    async def directory(self, known: int) -> Directory:
        if self._starting is None:
            self._starting = asyncio.create_task(self._servers.start())
        await asyncio.shield(self._starting)
        return await self._servers.directory(known)

    async def pids(self) -> dict[int, int]:
        return self._servers.pids

    async def warnings(self) -> list[str]:
        """Return what this process warned of since the last call; only the driver asks."""
        if self._absence is not None:
            self._absence.heard()
        return self._warnings.take()

    async def close(self) -> None:
        await self._servers.close()


class RayDirectory:
    """DirectorySource that asks the actor of one node."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def directory(self, known: int) -> Directory:
        """See DirectorySource. The servers of a dead actor are dead too."""
        try:
            return await answer_of(self._actor.directory.remote(known), _DIRECTORY_CALL)
        except InfraError:
            raise
        except TrialrunError as error:  # the caller retries infrastructure failures only
            raise InfraError(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class ToolAccess:
    """How a rollout worker reaches tool servers; made by the driver, used on the worker's node."""

    actors: dict[str, Any]
    """Supervising actor by node id; empty if every worker runs its own server."""
    own_node_only: bool = False

    def tools_for(self, worker: str, config: ToolServerConfig) -> BalancedTools:
        """Return the worker's connection to tools, not started.

        Raises InfraError on a node without servers.
        """
        if not self.actors:
            return LocalTools(worker, config)
        return BalancedTools(self._sources(), config, first=stable_hash(worker))

    def _sources(self) -> list[RayDirectory]:
        if not self.own_node_only:
            return [RayDirectory(actor) for actor in self.actors.values()]
        node_id = ray.get_runtime_context().get_node_id()
        if node_id not in self.actors:
            raise InfraError(f"node {node_id} has just joined and has no tool servers yet")
        return [RayDirectory(self.actors[node_id])]


class ToolFleet:
    """Starts tool servers on the nodes that `[cluster]` names; lives in the driver.

    With `tool_placement = "node"` servers listen on UNIX sockets for the workers of their node.
    With `"cluster"` they listen on TCP for workers anywhere, behind a random token of this run.
    """

    def __init__(self, config: RunConfig, lasts: Lasting = ENDS_WITH_DRIVER) -> None:
        self._lasts = lasts
        self._section = config.cluster
        self._tools = config.tools
        self._token = secrets.token_urlsafe(32)
        self._actors: dict[str, Any] = {}
        self._looking: asyncio.Task[None] | None = None

    @property
    def access(self) -> ToolAccess:
        """What a worker that is spawned now needs."""
        return ToolAccess(dict(self._actors), self._section.tool_placement == "node")

    async def start(self) -> None:
        """Start servers on every node.

        Raises MissingError if no node may run them, InfraError if they do not start.
        """
        if self._section.tool_placement == "worker":
            return
        self._look()
        if not self._actors:
            raise MissingError(
                f"no node of the cluster has the resource {self._section.tool_node_resource!r}, "
                "which cluster.tool_node_resource requires"
            )
        await asyncio.gather(
            *(RayDirectory(actor).directory(-1) for actor in self._actors.values())
        )
        self._looking = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        """End all servers."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        ending = [actor.close.remote() for actor in self._actors.values()]
        await asyncio.gather(*ending, return_exceptions=True)
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self._look()
            await asyncio.gather(*map(self._listen_to, self._actors))

    async def _listen_to(self, node_id: str) -> None:
        """Log what the supervisor of a node warned of."""
        with suppress(TrialrunError):  # who needs its servers gets the error
            warnings = await answer_of(self._actors[node_id].warnings.remote(), _WARNINGS_CALL)
            say_for(f"node {node_id[:8]}", warnings)

    def _look(self) -> None:
        resource = self._section.tool_node_resource or "CPU"
        nodes = {
            node["NodeID"]: node["NodeManagerAddress"]
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get(resource, 0) > 0
        }
        for node_id in self._actors.keys() - nodes.keys():
            logger.warning("node %s left the cluster, and its tool servers with it", node_id)
            del self._actors[node_id]
        for node_id in nodes.keys() - self._actors.keys():
            self._actors[node_id] = self._spawn(node_id, nodes[node_id])

    def _spawn(self, node_id: str, address: str) -> Any:
        section = self._section
        everywhere = section.tool_placement == "cluster"
        spec = ServersSpec(
            node=address,
            count=section.tool_servers_per_node,
            host=address if everywhere else "",
            token=self._token if everywhere else "",
        )
        lasts, remote = self._lasts, ray.remote(ToolServersActor)
        options: Any = lasts.options(name=node_id)
        if options:  # the servers that the driver before has left, where they are the same
            options["get_if_exists"] = True
        make: Any = remote.options(
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=_MAX_CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            **options,
        )
        return make.remote(spec, self._tools, lasts.keep_s)
