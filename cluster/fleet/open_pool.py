"""A pool of rollout workers with its tool servers, opened and closed together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cluster.config.run_config import RunConfig
from cluster.fleet.engine_plan import EnginePlan
from cluster.fleet.pool import PoolTiming, RolloutPool
from cluster.fleet.rollout_actor import RayWorker, Share
from cluster.fleet.rollout_worker import WorkerSpec
from cluster.fleet.tool_fleet import ToolFleet
from cluster.fleet.weight_relay import WeightRelays
from cluster.lifecycle.inputs import with_recording


@asynccontextmanager
async def open_pool(config: RunConfig, model: Path, run: Path) -> AsyncIterator[RolloutPool]:
    """Start the tool servers of the nodes, and begin to start the workers that serve `model`.

    With `tools.record`, calls and answers are recorded in the run directory `run`.
    """
    config = with_recording(config, run)
    fleet = ToolFleet(config)
    relays = WeightRelays(config.cluster.shm_dir, config.engine.load_timeout_s)
    pool = _make_pool(config, model, fleet, relays)
    try:
        await fleet.start()
        pool.resize(config.rollouts.workers)
        yield pool
    finally:
        await pool.close()
        await relays.close()
        await fleet.close()


def _make_pool(
    config: RunConfig, model: Path, fleet: ToolFleet, relays: WeightRelays
) -> RolloutPool:
    section = config.cluster
    spec = WorkerSpec(str(model), config.model.max_model_len, config.tools)
    plan = EnginePlan(
        str(model),
        config.model,
        config.engine,
        config.run.seed & 0x7FFFFFFF,
        section.gpus_per_worker > 0,
        section.transport,
        deterministic=config.run.deterministic,
    )
    share = Share(section.cpus_per_worker, section.gpus_per_worker)
    timing = PoolTiming(
        start_timeout_s=config.engine.start_timeout_s, load_timeout_s=config.engine.load_timeout_s
    )

    def spawn(name: str) -> RayWorker:
        return RayWorker(name, spec, plan, fleet.access, share, relays)

    return RolloutPool(spawn, config.rollouts, timing)
