"""Episodes from a worker actor to a learner actor: Arrow batches against pickled pydantic models.

Both ways start from finished episode objects in the worker (dataclasses for Arrow, pydantic models
for pickle) and end in the learner with what packing asks for: token ids, phases and logprobs of
all episodes as flat numpy arrays with the offsets of the rows, each read once. Arrow's time
includes `to_batch`; pickle's is Ray's serialiser and numpy's conversion of the lists. Both take
turns in one run, and each figure is the median of the rounds. The columns worker and learner are
the milliseconds that the two processes compute themselves; pickling lies in neither, it is
Ray's and shows in the total.

    python tests/benchmarks/bench_trajectories.py
"""

import argparse
import logging
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from pydantic_episode import PydanticEpisode

from envs.messages import Message
from envs.tools import AnswerStatus
from rollout.engine import VersionSpan
from rollout.episode import (
    CallRecord,
    Episode,
    Lease,
    Outcome,
    Phase,
    RolloutKind,
    Sampling,
    Timings,
    Turn,
)
from rollout.episode_schema import Ragged, from_wire, ragged, to_batch, to_wire

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("arrow", "pydantic")
COLUMNS = ("token_ids", "phases", "logprobs")


LOOKUP = CallRecord(
    name="lookup",
    arguments='{"key": "a"}',
    status=AnswerStatus.OK,
    result="17",
    seconds=1e-3,
    cpu_seconds=1e-4,
    purpose="execution",
)


def make_episode(number: int, tokens: int) -> Episode:
    """An episode of `tokens` tokens, half of them sampled, with a tool call every 250 tokens."""
    rng = np.random.default_rng(number)
    turns = max(1, tokens // 250)
    bounds = np.linspace(0, tokens, turns + 1).astype(int).tolist()
    phases = np.repeat([Phase.OBSERVATION, Phase.EXECUTION], [tokens // 2, tokens - tokens // 2])
    logprobs = np.where(phases == Phase.EXECUTION, -rng.exponential(size=tokens), math.nan)
    return Episode(
        lease=Lease(
            run="run",
            episode=f"e{number:06d}",
            kind=RolloutKind.TRAIN,
            group=f"g{number // 8}",
            group_number=0,
            task="task",
            sample_index=number % 8,
            attempt=0,
            seed=number,
        ),
        environment="catalog",
        split="train",
        mode="trial",
        outcome=Outcome.ANSWERED,
        error="",
        reward=1.0,
        reward_parts={"correct": 1.0},
        answer="17",
        question="What is under a?",
        tags={"depth": "1"},
        token_ids_T=tuple(rng.integers(0, 50_000, tokens).tolist()),
        phases_T=tuple(phases.tolist()),
        logprobs_T=tuple(logprobs.tolist()),
        spans=(VersionSpan(tokens // 2, 3),),
        turns=tuple(
            Turn(
                phase=Phase.EXECUTION,
                start=start,
                end=end,
                text="I look it up.",
                finish_reason="stop",
                policy_error="",
                calls=(LOOKUP,),
            )
            for start, end in pairwise(bounds)
        ),
        messages=tuple(Message("assistant", "I look it up.") for _ in range(turns)),
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=number),
        timings=Timings(started_at=1.7e9, wall_s=2.0, queue_s=0.1, generate_s=1.5, tool_s=0.4),
        source="policy",
        worker="worker-0",
        tool_server="tools-0",
        isolation="namespaces",
        extra={"trial_calls": 2.0},
    )


class Worker:
    """Holds finished episodes and hands them over either way."""

    def __init__(self, rows: int, tokens: int) -> None:
        self._episodes = [make_episode(number, tokens) for number in range(rows)]
        self._models = [PydanticEpisode.of(episode) for episode in self._episodes]
        self.seconds = 0.0

    def row_bytes(self) -> float:
        """Bytes of an episode in Arrow."""
        return to_batch(self._episodes).nbytes / len(self._episodes)

    def arrow(self) -> pa.Buffer:
        start = time.perf_counter()
        buffer = to_wire(to_batch(self._episodes))
        self.seconds = time.perf_counter() - start
        return buffer

    def pydantic(self) -> list[PydanticEpisode]:
        self.seconds = 0.0
        return self._models

    def spent(self) -> float:
        """Seconds that the last hand-over computed."""
        return self.seconds


class Learner:
    """Reads the token arrays of a hand-over; returns a checksum and the seconds it computed."""

    def arrow(self, buffer: pa.Buffer) -> tuple[float, float]:
        start = time.perf_counter()
        batch = from_wire(buffer)
        total = _read([ragged(batch, name) for name in COLUMNS])
        return total, time.perf_counter() - start

    def pydantic(self, models: list[PydanticEpisode]) -> tuple[float, float]:
        start = time.perf_counter()
        columns = [
            ([model.token_ids_T for model in models], np.int32),
            ([model.phases_T for model in models], np.int8),
            ([model.logprobs_T for model in models], np.float32),
        ]
        total = _read([_flat(rows, dtype) for rows, dtype in columns])
        return total, time.perf_counter() - start


def _flat(rows: Sequence[list[int] | list[float]], dtype: npt.DTypeLike) -> Ragged:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    values = np.fromiter(chain.from_iterable(rows), dtype, offsets[-1])
    return Ragged(values, offsets)


def _read(columns: list[Ragged]) -> float:
    return float(sum(np.nansum(c.values, dtype=np.float64) + c.offsets[-1] for c in columns))


def measure(rows: int, tokens: int, rounds: int) -> list[tuple[str, ...]]:
    """Return the table's lines for episodes of `tokens` tokens, `rows` of them in a batch."""
    worker: Any = ray.remote(Worker).remote(rows, tokens)
    learner: Any = ray.remote(Learner).remote()
    seconds: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    sums: dict[str, float] = {}
    for _ in range(rounds + 1):  # the first round warms up and is left out
        for way in WAYS:
            start = time.perf_counter()
            handed = getattr(worker, way).remote()
            sums[way], decoding = ray.get(getattr(learner, way).remote(handed))
            total = time.perf_counter() - start
            seconds[way].append((total, ray.get(worker.spent.remote()), decoding))
    if not math.isclose(*sums.values(), rel_tol=1e-5):
        raise RuntimeError(f"expected both ways to bring the same tokens, found {sums}")
    size: float = ray.get(worker.row_bytes.remote())
    medians = {
        way: [statistics.median(part) for part in zip(*rounds_[1:], strict=True)]
        for way, rounds_ in seconds.items()
    }
    return [
        (
            f"{size / 1024:.1f} KiB x {rows}",
            way,
            f"{rows / total:,.0f}",
            f"{rows * size / total / 1e6:,.1f}",
            f"{1e3 * total:.2f}",
            f"{1e3 * encoding:.2f}",
            f"{1e3 * decoding:.2f}",
            f"{medians['pydantic'][0] / total:.1f}x",
        )
        for way, (total, encoding, decoding) in medians.items()
    ]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each way")
    rounds = parser.parse_args().rounds
    # Actors must find the modules of the project and the one beside this file.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    header = ("rows", "way", "rows/s", "MB/s", "ms total", "ms worker", "ms learner", "ratio")
    lines = [header, *measure(1_024, 60, rounds), *measure(64, 5_200, rounds)]
    ray.shutdown()
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write("  ".join(cells) + "\n")


if __name__ == "__main__":
    main()
