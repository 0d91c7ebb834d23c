"""Tool servers killed during a group of episodes: only what was lost is run again."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.config.environments import make_environment
from cluster.config.run_config import RolloutsSection, RunConfig, load_config, to_toml
from cluster.fleet.balanced_tools import BalancedTools
from cluster.fleet.pool import PoolTiming, RolloutPool
from cluster.fleet.rollout_worker import MakeEngine, RolloutWorker, WorkerSpec
from cluster.fleet.server_supervisor import ServersSpec, ServerSupervisor, SupervisorTiming
from cluster.scheduling.rollouts import Group, Rollouts
from cluster.scheduling.schedule import GroupPlan
from cluster.scheduling.task_stream import TaskStream
from envs.tasks import Task
from learner.pretrained.tiny_model import build_tiny_model
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig
from rollout.engine import Completion, Prompt, SamplingParams
from rollout.engines.engine_spec import EngineSpec
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Lease, RolloutKind
from rollout.store.ledger_state import State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from rollout.store.run_reader import RunReader
from rollout.weights.manifest import WeightManifest

GROUPS, GROUP_SIZE = 2, 4


class Held(ScriptedEngine):
    """A scripted teacher that waits for `gate` after its tools have answered."""

    def __init__(self, config: RunConfig, template: ChatTemplate, gate: asyncio.Event) -> None:
        super().__init__(make_environment(config.env).teacher("trial").reply, template)
        self._gate = gate
        self.thinking = 0

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        if any(message.role == "tool" for message in prompt.messages):
            self.thinking += 1
            await self._gate.wait()
        return await super().sample(prompt, params)


class Client:
    """WorkerClient of a worker in this process."""

    def __init__(self, worker: RolloutWorker) -> None:
        self._worker = worker

    async def start(self) -> None:
        await self._worker.start()

    async def run_episode(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        return await self._worker.run_episode(lease, task, config)

    async def load_weights(self, manifest: WeightManifest) -> None: ...

    async def ping(self) -> None: ...

    def kill(self) -> None: ...


def worker_of(
    config: RunConfig, model: Path, tools: BalancedTools, make_engine: MakeEngine
) -> RolloutWorker:
    engine = EngineSpec(model_path=str(model), model=config.model, engine=config.engine, seed=0)
    return RolloutWorker("w", WorkerSpec(engine=engine, tools=config.tools), tools, make_engine)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(
        "catalog",
        [
            f"run.dir={tmp_path}",
            "run.name=unit",
            f"rollouts.groups_per_step={GROUPS}",
            f"rollouts.group_size={GROUP_SIZE}",
            "rollouts.max_staleness=0",
            "rollouts.max_refills=0",
        ],
    )


def rewards(groups: Sequence[Group]) -> dict[str, float]:
    return {
        episode: float(reward)
        for group in groups
        for episode, reward in zip(group.episodes, group.rewards, strict=True)
    }


@pytest.mark.real
async def test_killed_servers_cost_attempts_but_no_episode_and_no_reward(
    tmp_path: Path, config: RunConfig
) -> None:
    model = build_tiny_model(tmp_path / "model", 0)
    timing = SupervisorTiming(health_every_s=0.5, backoff_s=0.05)
    servers = ServerSupervisor(ServersSpec(node="node", count=2), config.tools, timing)
    await servers.start()
    gate, engines = asyncio.Event(), []

    def make_engine(template: ChatTemplate, spec: EngineSpec) -> Held:
        del spec
        engines.append(Held(config, template, gate))
        return engines[-1]

    worker = worker_of(config, model, BalancedTools([servers], config.tools), make_engine)
    section = RolloutsSection(workers=1)
    pool = RolloutPool(lambda name: Client(worker), section, PoolTiming())
    stream = TaskStream(make_environment(config.env), "train", 0)
    info = RunInfo(run="unit", seed=0, created_at=0.0)
    killed = list(servers.pids.values())
    try:
        with RunDirectory.create(config.path, to_toml(config), info) as run:
            pool.resize(1)
            await pool.wait_healthy()
            rollouts = Rollouts(pool, stream, run, config)
            rollouts.start(0)
            while engines[0].thinking < GROUPS * GROUP_SIZE:
                await asyncio.sleep(0.01)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            gate.set()
            async with asyncio.timeout(30):
                groups = await rollouts.collect(GROUPS)
            await rollouts.close()
            run.ledger.train(1, [episode for group in groups for episode in group.episodes])
            audit = run.ledger.audit()
        assert [group.batch.num_rows for group in groups] == [GROUP_SIZE] * GROUPS
        assert audit.violations == ()
        assert audit.states == {**dict.fromkeys(State, 0), State.TRAINED: GROUPS * GROUP_SIZE}
        rows = list(RunReader(config.path).episodes())
        lost = [row for row in rows if row.outcome == "infra_failed"]
        assert len(lost) == audit.re_leases == GROUPS * GROUP_SIZE, "each lost its session once"
        assert {row.reward for row in lost} == {None}

        again: dict[str, float] = {}
        plan = GroupPlan(kind=RolloutKind.TRAIN, seed=config.run.seed, samples=GROUP_SIZE)
        for number in range(GROUPS):
            task = stream[number]
            for lease in plan.leases("unit", number, task.id):
                batch = await worker.run_episode(lease, task, config.episode)
                again[lease.episode] = batch["reward"][0].as_py()
                served_by = batch["tool_server"][0].as_py()
                assert served_by.startswith("node/")
                assert not any(served_by.endswith(f".{pid}") for pid in killed)
        assert rewards(groups) == pytest.approx(again), "as if nothing had been killed"
    finally:
        await pool.close()
        await worker.close()
        await servers.close()
