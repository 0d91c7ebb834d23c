"""What a driver takes over from the one before it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import pyarrow as pa
import ray

from cluster.config.run_config import RunConfig
from cluster.fleet.placement.worker_place import WorkerPlace
from cluster.fleet.pool_worker import SurvivingClient, Worker
from cluster.fleet.rollout_worker import WorkerSpec
from cluster.fleet.survivors.lasting import (
    ENDS_WITH_DRIVER,
    Lasting,
    Survivor,
    digest_of,
    end_others,
    logger,
    survivors_of,
)
from envs.errors import InfraError

_TOOLS = "tools"


async def finished_meanwhile(workers: Sequence[Worker]) -> list[pa.RecordBatch]:
    """Return, once, the episodes (one row each) that `workers` have finished since the driver
    before this one was gone; what they had not finished is ended.
    """
    rows: list[pa.RecordBatch] = []
    for worker in workers:
        client = worker.client
        if isinstance(client, SurvivingClient) and client.has_survived:
            with suppress(InfraError):  # it is lost, which the pool notices
                rows += await client.settle()
    return rows


@dataclass(frozen=True, slots=True)
class TakenOver:
    """How the actors of a run last, and those that an earlier driver has left."""

    tools: Lasting
    groups: Mapping[str, Lasting]
    """How the workers of each group last."""
    _left: Mapping[str, list[Survivor]]

    def take(self, group: str) -> Survivor | None:
        """Return, once, a worker of `group` that was left; None if there is no other."""
        left = self._left.get(group, [])
        return left.pop(0) if left else None


def take_over(
    key: str,
    config: RunConfig,
    specs: Mapping[str, WorkerSpec],
    places: Mapping[str, WorkerPlace],
    wanted: Mapping[str, int],
) -> TakenOver:
    """Return what the run `key` takes over; an empty key stands for a run that leaves nothing.

    `specs`, `places` and `wanted` (the number of workers) are by group. What was left and does not
    fit, or is one too many, is ended.
    """
    section = config.cluster
    if not section.keep_workers_s:
        end_others(survivors_of(key) if key else [], {})  # an earlier recipe kept them
    if not key or not section.keep_workers_s:
        return TakenOver(ENDS_WITH_DRIVER, dict.fromkeys(specs, ENDS_WITH_DRIVER), {})
    servers = (section.tool_placement, section.tool_servers_per_node, section.tool_node_resource)
    base = Lasting(key=key, keep_s=section.keep_workers_s)
    tools = replace(base, kind=_TOOLS, digest=digest_of(config.tools, *servers))
    groups = {
        group: replace(
            base, kind=f"worker-{group}", digest=digest_of(spec, places[group], tools.digest)
        )
        for group, spec in specs.items()
    }
    fitting = end_others(
        survivors_of(key), {lasts.kind: lasts.digest for lasts in (tools, *groups.values())}
    )
    left: dict[str, list[Survivor]] = defaultdict(list)
    for group, lasts in groups.items():
        found = [one for one in fitting if one.kind == lasts.kind]
        left[group] = found[: wanted[group]]
        for surplus in found[wanted[group] :]:
            ray.kill(surplus.actor)
    if count := sum(map(len, left.values())):
        logger.warning("%d rollout workers of the driver before go on with this one", count)
    return TakenOver(tools, groups, left)
