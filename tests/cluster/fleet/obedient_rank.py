"""A rank of the learner that does what it is told.

In a module of its own: its process imports this module, and neither torch nor transformers.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import ray

from cluster.fleet.shared_folder import Answer, Question, answer
from envs.errors import NonFiniteError


class Rank:
    """A rank that obeys the `order` column of its table: the real one needs a model."""

    def __init__(self, transport: str, shm_dir: str) -> None:
        del transport, shm_dir

    def rendezvous(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    def place(self) -> tuple[str, int]:
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def look(self, question: Question, rank: int) -> Answer:
        """Answer as rank 0 would, and as a rank on another node where it is rank 1."""
        return Answer("far", "does not see it") if rank == 1 else answer(question, rank)

    def ping(self) -> None:
        pass

    def start(self, setup: object) -> None:
        pass

    def sft(
        self, table: pa.Table, seed: int, steps_done: int, checkpoints: str
    ) -> Iterator[dict[str, float]]:
        assert (steps_done, checkpoints) == (0, str(Path("checkpoints").absolute()))
        for step, order in enumerate(table["order"].to_pylist()):
            if order == "fail":
                raise NonFiniteError("the loss of step 1 is nan")
            if order == "hang":
                time.sleep(3600)
            if order == "die":
                os._exit(1)
            if order == "peer died":
                raise RuntimeError("connection closed by peer")
            yield {"step": float(step), "seed": float(seed)}

    def export_model(self, path: str) -> None:
        Path(path).mkdir()
        (Path(path) / "new").touch()

    def close(self) -> None:
        pass
