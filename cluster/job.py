"""A training job while it runs: run directory, learner, pool and rollouts, opened and closed
together.
"""

import asyncio
import shlex
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from cluster.config import RunConfig, load_config, to_toml
from cluster.engine_plan import EnginePlan
from cluster.environments import make_environment
from cluster.groups import Group, drop
from cluster.learner_group import LearnerGroup, LearnerPlan
from cluster.pool import PoolTiming, RolloutPool
from cluster.progress import Progress
from cluster.retention import checkpoint_path, newest_checkpoint
from cluster.rollout_actor import RayWorker, Share
from cluster.rollout_worker import WorkerSpec
from cluster.rollouts import Rollouts
from cluster.rounds import Rounds
from cluster.sameness import check_same, differences
from cluster.task_stream import TaskStream
from cluster.tool_fleet import ToolFleet
from cluster.weight_relay import WeightRelays
from learner.pretrained import check_folder_context, resolve_model
from learner.report import StepReport
from rollout.ledger_state import DropReason
from rollout.run_directory import RunDirectory
from rollout.run_layout import RunInfo, RunLayout
from rollout.template import ChatTemplate

_SAME = (
    *("model", "env", "episode", "run.seed", "run.deterministic", "rollouts.group_size"),
    *("learner.ranks", "learner.zero_stage", "learner.optimizer"),
    *("learner.betas", "learner.weight_decay"),
)
"""What must be as before where a run goes on: its tasks, its episodes, its optimizer's state."""
_PLACES = ("run.dir", "run.name", "run.models_dir")
STACK = ("torch", "deepspeed", "ray", "transformers", "pyarrow")


@dataclass(frozen=True, slots=True)
class Job:
    """What the loop works with."""

    config: RunConfig
    run: RunDirectory
    pool: RolloutPool
    rollouts: Rollouts | Rounds
    learner: LearnerGroup
    resumed_from: Path | None
    """Checkpoint that the run goes on from; None begins with the model as it is."""

    @property
    def steps_done(self) -> int:
        """Steps count from 1; step s makes policy version s."""
        return int(self.resumed_from.name) if self.resumed_from else 0

    async def begin(self) -> None:
        """Bring learner and pool to where the run stands and start to play."""
        if self.resumed_from is not None:
            await self.learner.load(self.resumed_from)
            await self.pool.load(await self.learner.publish(self.steps_done))
        self.rollouts.start(self.steps_done)

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint of `step`."""
        return checkpoint_path(self.run.layout.checkpoints, step)

    def trained(self, step: int, groups: Sequence[Group], report: StepReport) -> None:
        """Record what became of every episode of `step`; comes before its checkpoint."""
        dropped = {episode: DropReason(reason) for episode, reason in report.dropped}
        for reason in sorted(set(dropped.values())):
            drop(self.run.ledger, [e for e in dropped if dropped[e] is reason], reason, step)
        given = [episode for group in groups for episode in group.episodes]
        self.run.ledger.train(step, [episode for episode in given if episode not in dropped])
        if report.annotations is not None:
            self.run.annotate(step, report.annotations)
        self.run.sync()


def table_of(groups: Sequence[Group]) -> pa.Table:
    """Return the episodes of all groups as one table."""
    return pa.Table.from_batches([group.batch for group in groups])


def new_run(path: Path, config: RunConfig) -> RunDirectory:
    """Create the run directory at `path`. Raises StoreError where one is already."""
    info = RunInfo(
        run=config.run.name,
        seed=config.run.seed,
        created_at=time.time(),
        command=shlex.join(sys.argv),
        versions={name: version(name) for name in STACK},
    )
    return RunDirectory.create(path, to_toml(config), info)


def recorded_in(config: RunConfig, path: Path) -> RunConfig:
    """Return `config` such that its tool servers record, where that is asked: in the folder that it
    names, or else in the run at `path`.
    """
    if not config.tools.record:
        return config
    folder = Path(config.tools.record_dir or RunLayout(path).tool_traffic).resolve()
    tools = config.tools.model_copy(update={"record_dir": str(folder)})
    return config.model_copy(update={"tools": tools})


def find_model(config: RunConfig) -> Path:
    """Return the folder of the model that the recipe names, building it if need be; refuses a bad
    template.
    """
    path = resolve_model(config.model.path, Path(config.run.models_dir), config.run.seed)
    check_folder_context(path, config.model.max_model_len)
    ChatTemplate.load(path)
    return path.resolve()


@asynccontextmanager
async def open_pool(config: RunConfig, model: Path) -> AsyncIterator[RolloutPool]:
    """Start the tool servers of the nodes, and begin to start the workers that serve `model`."""
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


def goes_on(run: RunDirectory, config: RunConfig, step: int, progress: Progress) -> None:
    """Let `run` go on after `step` as `config` says, and tell and record what is new in it.

    Raises ConfigError where that would make another experiment of it.
    """
    before = load_config(str(run.layout.config_toml))
    check_same(f"the run in {run.path}", before, config, _SAME)
    new = differences(before, config, but=_PLACES)
    if new:
        progress.say(f"going on after step {step} with other settings: {'; '.join(new)}")
        run.reconfigure(to_toml(config), step)


@contextmanager
def open_run(config: RunConfig, progress: Progress, *, resume: bool) -> Iterator[RunDirectory]:
    """Create the run directory of a training run, or open it to go on from its newest checkpoint.

    Starts nothing. Raises StoreError where the run exists and `resume` is not set, MissingError
    where it does not and is, or where the model or the tasks are not there, and ConfigError where
    the run cannot go on as `config` says.
    """
    find_model(config)
    make_environment(config.env)
    run = RunDirectory.open(config.path) if resume else new_run(config.path, config)
    with run:
        if resume:
            checkpoint = newest_checkpoint(run.layout.checkpoints)
            step = int(checkpoint.name) if checkpoint else 0
            goes_on(run, config, step, progress)
            run.recover(step)
        yield run


@asynccontextmanager
async def open_job(config: RunConfig, run: RunDirectory) -> AsyncIterator[Job]:
    """Start everything that the training of `run` needs."""
    model = find_model(config)
    stream = TaskStream(make_environment(config.env), "train", config.run.seed)
    checkpoint = newest_checkpoint(run.layout.checkpoints)
    async with open_pool(recorded_in(config, run.path), model) as pool:
        learner = LearnerGroup(LearnerPlan(config, str(model)))
        try:
            await asyncio.gather(learner.start(), pool.wait_healthy())
            source = Rounds if config.run.deterministic else Rollouts
            rollouts = source(pool, stream, run, config)
            try:
                yield Job(config, run, pool, rollouts, learner, checkpoint)
            finally:
                await rollouts.close()
        finally:
            await learner.close()
