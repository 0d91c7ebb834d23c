"""Ray actor of one learner rank, a thin shell around Trainer."""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from cluster.fleet.shared_folder import Answer, Question, answer
from cluster.fleet.weight_relay import place_here
from cluster.lifecycle.retention import checkpoint_path
from envs.late_imports import import_late
from learner.outputs.digest import tensor_digests, with_weight_digests
from learner.outputs.publish import CudaIpcPublisher, Publisher, SharedMemoryPublisher
from learner.pretrained.architecture import check_trained
from learner.pretrained.folder import folder_weights
from learner.report import StepReport
from learner.trainer_setup import TrainerSetup
from rollout.weights.layout import push_layout
from rollout.weights.manifest import Transport, WeightManifest

if TYPE_CHECKING:
    from learner.trainer import Trainer

TRAINER = "learner.trainer:Trainer"
BACKEND = "learner.backends.deepspeed_backend:DeepSpeedBackend"
"""Imported only where a rank runs: importing DeepSpeed takes many seconds."""


class LearnerActor:
    """One learner rank and, on rank 0, the publisher of its weights."""

    def __init__(self, transport: Transport, shm_dir: str) -> None:
        self._transport = transport
        self._shm_dir = Path(shm_dir)
        self._trainer: Trainer | None = None
        self._publisher: Publisher | None = None

    def rendezvous(self) -> tuple[str, int]:
        """Return the address and a free port of this node, for all ranks to connect to."""
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, int(probe.getsockname()[1])

    def place(self) -> tuple[str, int]:
        """Return the id of the rank's node, and its process."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def look(self, question: Question, rank: int) -> Answer:
        """Say whether this node has the run directory and the model that the driver has."""
        return answer(question, rank)

    def ping(self) -> None:
        """Answer once the rank has nothing else to do; only its death makes this fail."""

    def start(self, setup: TrainerSetup) -> None:
        torch.use_deterministic_algorithms(setup.deterministic)
        self._trainer = import_late(TRAINER)(setup, import_late(BACKEND))

    def rl_step(self, table: pa.Table, *, digest_weights: bool = False) -> StepReport:
        """Make one step. With `digest_weights` rank 0's report has a digest of every weight.

        The digests need all weights gathered, merged with their adapters and copied to the host,
        a multiple of the cost of a LoRA push; the driver asks for them where they are kept.
        """
        report = self._live.rl_step(table)
        if not digest_weights:
            return report
        named = self._live.named_weights()
        if self._live.setup.rank == 0:
            return with_weight_digests(report, tensor_digests(named))
        for _ in named:  # gathering them is collective
            pass
        return report

    def sft(
        self, table: pa.Table, seed: int, steps_done: int, checkpoints: str
    ) -> Iterator[dict[str, float]]:
        """Run the remaining steps of an SFT; yield the metrics of each, after its checkpoint."""
        setup, saved = self._live.setup, steps_done
        assert setup.sft is not None, "Trainer.sft refuses it"
        for metrics in self._live.sft(table, seed, steps_done):
            step = int(metrics["step"])
            if step // setup.sft.checkpoint_every > saved // setup.sft.checkpoint_every:
                self._live.save_checkpoint(checkpoint_path(Path(checkpoints), step), step)
                saved = step
            yield metrics

    def logprobs(self, table: pa.Table) -> list[NDArray[np.float32]]:
        return self._live.logprobs(table)

    def publish_weights(self, version: int) -> WeightManifest | None:
        """Publish the weights as `version`; collective, and only rank 0 returns the manifest."""
        named = self._live.pushed_weights()
        if self._live.setup.rank != 0:
            for _ in named:
                pass
            return None
        if self._publisher is None:
            self._publisher = self._make_publisher()
        manifest = self._publisher.publish(version, named)
        return replace(manifest, place=place_here(str(self._shm_dir)))

    def save_checkpoint(self, path: str, step: int) -> None:
        self._live.save_checkpoint(path, step)

    def load_checkpoint(self, path: str) -> int:
        return self._live.load_checkpoint(path)

    def export_model(self, path: str) -> None:
        self._live.export_model(path)

    def close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()
        if self._trainer is not None:
            self._trainer.close()

    @property
    def _live(self) -> "Trainer":
        assert self._trainer is not None, "start comes first"
        return self._trainer

    def _make_publisher(self) -> Publisher:
        setup = self._live.setup
        layout = push_layout(setup.model_path, setup.model)
        folder = Path(setup.model_path)
        names = check_trained(folder, setup.model).carried if not setup.model.lora.rank else ()
        carried = folder_weights(folder, names)
        if self._transport == "cuda_ipc":
            device = torch.device("cuda", torch.cuda.current_device())
            return CudaIpcPublisher(device, layout, carried)
        return SharedMemoryPublisher(self._shm_dir, layout, carried)
