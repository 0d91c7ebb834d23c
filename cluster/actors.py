"""Ray actors: thin shells around plain classes, and the client through which the pool sees one."""

import os
import signal
import socket
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError

from cluster.pool import WorkerLost
from cluster.rollout_worker import RolloutWorker, WorkerSpec
from envs.errors import TrialrunError
from envs.tasks import Task
from learner.publish import CudaIpcPublisher, Publisher, SharedMemoryPublisher
from learner.report import StepReport
from learner.trainer import Trainer, TrainerSetup
from rollout.checkpoint_layout import checkpoint_layout
from rollout.config import EngineConfig, EpisodeConfig, ModelConfig
from rollout.engine import Engine
from rollout.engine_environment import engine_environment
from rollout.episode import Lease
from rollout.template import ChatTemplate
from rollout.vllm_engine import Transport, VllmEngine, VllmSpec
from rollout.weights import WeightManifest


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """How every worker's vLLM engine is started."""

    model: ModelConfig
    engine: EngineConfig
    seed: int
    gpu: bool
    transport: Transport


class RolloutActor:
    """Shell of one RolloutWorker with a vLLM engine; its methods share one event loop."""

    def __init__(self, name: str, spec: WorkerSpec, plan: EnginePlan) -> None:
        def make_engine(template: ChatTemplate) -> Engine:
            return VllmEngine(
                VllmSpec(
                    spec.model_path,
                    plan.model,
                    plan.engine,
                    (template.eos_token_id,),
                    plan.seed,
                    "cuda" if plan.gpu else "cpu",
                    plan.transport,
                )
            )

        self._worker = RolloutWorker(name, spec, make_engine)

    async def start(self) -> int:
        """Start all of it; returns the process id."""
        await self._worker.start()
        return os.getpid()

    async def run(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        return await self._worker.run(lease, task, config)

    async def load(self, manifest: WeightManifest) -> None:
        await self._worker.load(manifest)

    async def ping(self) -> None: ...

    async def close(self) -> None:
        await self._worker.close()


class RayWorker:
    """WorkerClient of one RolloutActor."""

    def __init__(
        self, name: str, spec: WorkerSpec, plan: EnginePlan, cpus: float, gpus: float
    ) -> None:
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_concurrency=4096)(RolloutActor)
        environment = {"env_vars": engine_environment(gpu=plan.gpu)}
        self._actor: Any = remote.options(runtime_env=environment).remote(name, spec, plan)
        self._name = name
        self.pid = 0

    async def start(self) -> None:
        self.pid = await self._answer(self._actor.start.remote())

    async def run(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        return await self._answer(self._actor.run.remote(lease, task, config))

    async def load(self, manifest: WeightManifest) -> None:
        await self._answer(self._actor.load.remote(manifest))

    async def ping(self) -> None:
        await self._answer(self._actor.ping.remote())

    async def close(self) -> None:
        await self._answer(self._actor.close.remote())

    def kill(self) -> None:
        ray.kill(self._actor)

    async def _answer(self, ref: Awaitable[Any]) -> Any:
        try:
            return await ref
        except RayTaskError as error:
            if isinstance(error.cause, TrialrunError):
                raise error.cause from None
            raise WorkerLost(f"{self._name}: {error.cause!r}") from error
        except RayError as error:
            raise WorkerLost(f"{self._name} died: {str(error).splitlines()[0]}") from error


class LearnerActor:
    """Shell of one learner rank and, on rank 0, of the publisher."""

    def __init__(self, transport: Transport, shm_dir: str) -> None:
        self._transport: Transport = transport
        self._shm_dir = Path(shm_dir)
        self._trainer: Trainer | None = None
        self._publisher: Publisher | None = None

    def rendezvous(self) -> tuple[str, int]:
        """Return an address and a free port of this node, where all ranks can meet."""
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, int(probe.getsockname()[1])

    def start(self, setup: TrainerSetup) -> None:
        self._trainer = Trainer(setup)

    def rl_step(self, table: pa.Table) -> StepReport:
        return self._live.rl_step(table)

    def sft(self, table: pa.Table, seed: int) -> list[dict[str, float]]:
        """Train one whole SFT; returns the metrics of every optimizer step."""
        return list(self._live.sft(table, seed))

    def logprobs(self, table: pa.Table) -> list[NDArray[np.float32]]:
        return self._live.logprobs(table)

    def publish(self, version: int) -> WeightManifest | None:
        """Publish the weights as `version`; every rank takes part, rank 0 returns the manifest."""
        named = self._live.named_weights()
        if self._live.setup.rank != 0:
            for _ in named:
                pass
            return None
        if self._publisher is None:
            self._publisher = self._make_publisher()
        return self._publisher.publish(version, named)

    def save(self, path: str, step: int) -> None:
        self._live.save(path, step)

    def load(self, path: str) -> int:
        return self._live.load(path)

    def export(self, path: str) -> None:
        self._live.export(path)

    def close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()
        if self._trainer is not None:
            self._trainer.close()

    def crash(self) -> None:
        """Die as by a fault of the machine: chaos tests."""
        os.kill(os.getpid(), signal.SIGKILL)

    @property
    def _live(self) -> Trainer:
        assert self._trainer is not None, "start comes first"
        return self._trainer

    def _make_publisher(self) -> Publisher:
        setup = self._live.setup
        layout = checkpoint_layout(setup.model_path, setup.model.dtype)
        if self._transport == "cuda_ipc":
            return CudaIpcPublisher(torch.device("cuda", torch.cuda.current_device()), layout)
        return SharedMemoryPublisher(self._shm_dir, layout)
