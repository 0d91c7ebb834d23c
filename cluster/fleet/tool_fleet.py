"""Tool servers on the nodes of a Ray cluster: one supervising actor per node."""

import asyncio
import logging
import secrets
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config.run_config import RunConfig
from cluster.fleet.balanced_tools import BalancedTools, LocalTools
from cluster.fleet.server_supervisor import Directory, ServersPlan, ServerSupervisor
from envs.config import ToolServerConfig
from envs.errors import InfraError, MissingError, TrialrunError
from envs.seeds import stable_hash

logger = logging.getLogger("trialrun")

_MAX_CALLS = 4096
"""Rollout workers that may wait for news of one node at once."""
_LOOK_EVERY_S = 5.0
"""How often the fleet looks for nodes that joined."""
_ASK_TIMEOUT_S = 120.0
"""Deadline for an actor's answer; a whole start of its servers is in it."""


class ToolServersActor:
    """Shell of one node's ServerSupervisor; started at the first question, after a restart too."""

    def __init__(self, plan: ServersPlan, config: ToolServerConfig) -> None:
        self._servers = ServerSupervisor(plan, config)
        self._starting: asyncio.Task[None] | None = None

    async def directory(self, known: int) -> Directory:
        if self._starting is None:
            self._starting = asyncio.create_task(self._servers.start())
        await asyncio.shield(self._starting)
        return await self._servers.directory(known)

    async def pids(self) -> dict[int, int]:
        return self._servers.pids

    async def close(self) -> None:
        await self._servers.close()


class RayDirectory:
    """DirectorySource behind the actor of one node."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def directory(self, known: int) -> Directory:
        """See DirectorySource; the servers of an actor that is gone are gone with it."""
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                return await self._actor.directory.remote(known)
        except TimeoutError:
            raise InfraError(
                f"the supervisor of a node's tool servers did not answer in {_ASK_TIMEOUT_S:g} s"
            ) from None
        except RayTaskError as error:
            if isinstance(error.cause, TrialrunError):
                raise InfraError(f"{type(error.cause).__name__}: {error.cause}") from error
            raise InfraError(f"a tool server supervisor failed: {error.cause!r}") from error
        except RayError as error:
            raise InfraError(
                f"a tool server supervisor died: {str(error).splitlines()[0]}"
            ) from error


@dataclass(frozen=True, slots=True)
class ToolAccess:
    """How a rollout worker comes to its tools; made by the driver, used where the worker runs."""

    actors: dict[str, Any]
    """The supervising actor by node id; empty where every worker has a server of its own."""
    own_node_only: bool = False

    def tools_for(self, worker: str, config: ToolServerConfig) -> BalancedTools:
        """Return the worker's tools, not started. Raises InfraError on a node without servers."""
        if not self.actors:
            return LocalTools(worker, config)
        return BalancedTools(self._sources(), config, first=stable_hash(worker))

    def _sources(self) -> list[RayDirectory]:
        if not self.own_node_only:
            return [RayDirectory(actor) for actor in self.actors.values()]
        node_id = ray.get_runtime_context().get_node_id()
        if node_id not in self.actors:
            raise InfraError(f"node {node_id} joined a moment ago and has no tool servers yet")
        return [RayDirectory(self.actors[node_id])]


class ToolFleet:
    """Tool servers on every node that should have them, as `[cluster]` says; the driver's.

    With `tool_placement = "node"` servers listen on UNIX sockets for the workers of their node,
    with `"cluster"` on TCP, behind a token drawn for the run, for workers anywhere.
    """

    def __init__(self, config: RunConfig) -> None:
        self._section = config.cluster
        self._tools = config.tools
        self._token = secrets.token_urlsafe(32)
        self._actors: dict[str, Any] = {}
        self._looking: asyncio.Task[None] | None = None

    @property
    def access(self) -> ToolAccess:
        """What a worker needs that is spawned now."""
        return ToolAccess(dict(self._actors), self._section.tool_placement == "node")

    async def start(self) -> None:
        """Start servers on every node. Raises MissingError, and InfraError where none starts."""
        if self._section.tool_placement == "worker":
            return
        self._look()
        if not self._actors:
            raise MissingError(
                f"no node of the cluster has the resource {self._section.tool_node_resource!r}, "
                "which cluster.tool_node_resource asks for"
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

    def _look(self) -> None:
        resource = self._section.tool_node_resource or "CPU"
        nodes = {
            node["NodeID"]: node["NodeManagerAddress"]
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get(resource, 0) > 0
        }
        for node_id in self._actors.keys() - nodes.keys():
            logger.warning("the tool servers of node %s are gone with it", node_id)
            del self._actors[node_id]
        for node_id in nodes.keys() - self._actors.keys():
            self._actors[node_id] = self._spawn(node_id, nodes[node_id])

    def _spawn(self, node_id: str, address: str) -> Any:
        section = self._section
        everywhere = section.tool_placement == "cluster"
        plan = ServersPlan(
            address,
            section.tool_servers_per_node,
            host=address if everywhere else "",
            token=self._token if everywhere else "",
        )
        remote: Any = ray.remote(ToolServersActor)
        return remote.options(
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=_MAX_CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        ).remote(plan, self._tools)
