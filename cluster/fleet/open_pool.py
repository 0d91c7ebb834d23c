"""A pool of rollout workers together with its tool servers and weight relays."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from cluster.config.fleet_config import DEFAULT_GROUP
from cluster.config.run_config import RunConfig
from cluster.fleet.health.heartbeat import Patience
from cluster.fleet.health.node_guard import NodeGuards
from cluster.fleet.health.quarantine import Quarantine, QuarantinePolicy
from cluster.fleet.placement.demand import NodeRequests, demand_of
from cluster.fleet.placement.worker_place import usable_nodes, worker_places, workers_wanted
from cluster.fleet.pool import RolloutPool
from cluster.fleet.pool_worker import PoolGroup, PoolTiming, Spawn
from cluster.fleet.rollout_actor import RayWorker, WorkerLinks
from cluster.fleet.rollout_worker import VLLM, WorkerSpec
from cluster.fleet.survivors.taking_over import TakenOver, take_over
from cluster.fleet.tool_fleet import ToolFleet
from cluster.fleet.weight_relay import WeightRelays
from cluster.lifecycle.inputs import anywhere, with_recording
from cluster.lifecycle.model_checks import check_serving
from rollout.engines.engine_spec import EngineSpec

_ASK_EVERY_S = 2.0
"""Interval at which the autoscaler's request follows the size of the pool."""
_SEED_BITS = 2**31 - 1
"""vLLM takes seeds of 31 bits."""


@asynccontextmanager
async def open_pool(
    config: RunConfig, model: Path, run: Path, engine_factory: str = VLLM, key: str = ""
) -> AsyncIterator[RolloutPool]:
    """Yield a pool whose workers, which sample from `model`, are still starting.

    `engine_factory` is the `module:function` of a MakeEngine. With `tools.record`, calls and
    answers are recorded in the run directory `run`. With a `key` (see `lasting_key`) workers and
    tool servers outlive this driver, and those that an earlier one has left are taken over. Raises
    MissingError, ConfigError for a model that vLLM cannot serve, and InfraError if no tool server
    starts.
    """
    check_serving(config, model)
    config = with_recording(config, run)
    places = worker_places(config)
    specs = {group: _spec_of(config, model, group, engine_factory) for group in places}
    taken = take_over(key, config, specs, places, workers_wanted(config))
    fleet = ToolFleet(config, taken.tools)
    relays = WeightRelays(config.cluster.shm_dir, config.engine.load_timeout_s)
    pool = _make_pool(config, specs, fleet, relays, taken)
    try:
        await fleet.start()
        for group, workers in workers_wanted(config).items():
            pool.resize(workers, group)
        async with _asking_for_nodes(config, pool):
            yield pool
    finally:
        await pool.close()
        await relays.close()
        await fleet.close()


@asynccontextmanager
async def _asking_for_nodes(config: RunConfig, pool: RolloutPool) -> AsyncIterator[None]:
    """Ask the autoscaler of a cluster for what the pool's workers need, while the block runs."""
    if not os.environ.get("RAY_ADDRESS", "").strip():  # a Ray of this command's own has none
        yield
        return
    requests = NodeRequests()

    async def keep_asking() -> None:
        while True:
            demand = demand_of(config, pool.groups, ranks=False)
            await asyncio.to_thread(requests.ask, demand)
            await asyncio.sleep(_ASK_EVERY_S)

    asking = asyncio.create_task(keep_asking())
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.to_thread(requests.withdraw)


def _make_pool(
    config: RunConfig,
    specs: Mapping[str, WorkerSpec],
    fleet: ToolFleet,
    relays: WeightRelays,
    taken: TakenOver,
) -> RolloutPool:
    timing = PoolTiming(
        start_timeout_s=config.engine.start_timeout_s, load_timeout_s=config.engine.load_timeout_s
    )
    guards, patience = NodeGuards(), Patience(limit_s=config.rollouts.ping_timeout_s)
    quarantine = Quarantine(
        QuarantinePolicy(
            losses=config.cluster.quarantine_losses,
            window_s=config.cluster.quarantine_window_s,
            for_s=config.cluster.quarantine_s,
        )
    )
    places = worker_places(config)

    def spawning(group: str) -> Spawn:
        def spawn(name: str) -> RayWorker:
            # fleet.access is read for each worker: nodes join and leave while the pool runs
            links = WorkerLinks(
                access=fleet.access,
                relays=relays,
                guards=guards,
                patience=patience,
                lasts=taken.groups[group],
            )
            place = places[group].avoiding([found.node for found in quarantine.nodes])
            return RayWorker(name, specs[group], place, links, taken.take(group))

        return spawn

    return RolloutPool(
        spawning(DEFAULT_GROUP),
        config.rollouts,
        timing,
        groups={
            name: PoolGroup(spawn=spawning(name), episodes_per_worker=group.episodes_per_worker)
            for name, group in config.rollouts.groups.items()
        },
        quarantine=quarantine,
        usable=lambda: usable_nodes(list(places.values())),
    )


def _spec_of(config: RunConfig, model: Path, group: str, engine_factory: str) -> WorkerSpec:
    """Return what the workers of a group are made from."""
    kind = config.worker_kinds()[group]
    spec = EngineSpec(
        model_path=str(model),
        model=anywhere(config.model),
        engine=kind.engine,
        seed=config.run.seed & _SEED_BITS,
        device="cuda" if kind.cluster.gpus_per_worker else "cpu",
        transport=config.cluster.transport,
        deterministic=config.run.deterministic,
    )
    keeps = config.rollouts.kept_turns_mib > 0
    return WorkerSpec(
        engine=spec, tools=config.tools, keep_turns=keeps, engine_factory=engine_factory
    )
