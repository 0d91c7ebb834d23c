"""A pool of rollout workers together with its tool servers and weight relays."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cluster.config.run_config import RunConfig
from cluster.fleet.pool import PoolTiming, RolloutPool
from cluster.fleet.rollout_actor import RayWorker
from cluster.fleet.rollout_worker import VLLM, WorkerSpec
from cluster.fleet.tool_fleet import ToolFleet
from cluster.fleet.weight_relay import WeightRelays
from cluster.lifecycle.inputs import anywhere, with_recording
from cluster.lifecycle.model_checks import check_serving
from rollout.engines.engine_spec import EngineSpec

_SEED_BITS = 2**31 - 1
"""vLLM takes seeds of 31 bits."""


@asynccontextmanager
async def open_pool(
    config: RunConfig, model: Path, run: Path, engine_factory: str = VLLM
) -> AsyncIterator[RolloutPool]:
    """Yield a pool whose workers, which sample from `model`, are still starting.

    `engine_factory` is the `module:function` of a MakeEngine. With `tools.record`, calls and
    answers are recorded in the run directory `run`. Raises MissingError, ConfigError for a model
    that vLLM cannot serve, and InfraError if no tool server starts.
    """
    check_serving(config, model)
    config = with_recording(config, run)
    fleet = ToolFleet(config)
    relays = WeightRelays(config.cluster.shm_dir, config.engine.load_timeout_s)
    pool = _make_pool(config, model, fleet, relays, engine_factory)
    try:
        await fleet.start()
        pool.resize(config.rollouts.workers)
        yield pool
    finally:
        await pool.close()
        await relays.close()
        await fleet.close()


def _make_pool(
    config: RunConfig, model: Path, fleet: ToolFleet, relays: WeightRelays, engine_factory: str
) -> RolloutPool:
    section = config.cluster
    engine = EngineSpec(
        model_path=str(model),
        model=anywhere(config.model),
        engine=config.engine,
        seed=config.run.seed & _SEED_BITS,
        device="cuda" if section.gpus_per_worker else "cpu",
        transport=section.transport,
        deterministic=config.run.deterministic,
    )
    spec = WorkerSpec(engine=engine, tools=config.tools, engine_factory=engine_factory)
    timing = PoolTiming(
        start_timeout_s=config.engine.start_timeout_s, load_timeout_s=config.engine.load_timeout_s
    )

    def spawn(name: str) -> RayWorker:
        # fleet.access is read for each worker: nodes join and leave while the pool runs
        return RayWorker(name, spec, section, fleet.access, relays)

    return RolloutPool(spawn, config.rollouts, timing)
