"""Does the driver keep up? Training steps with simulated workers in this process, without Ray.

Run: python -m tests.benchmarks.bench_control_plane
         [--rows 10:8192 100:8192 1000:8192] [--episodes 20000] [--rate 200] [--folder FOLDER]

Each row, WORKERS:IN_FLIGHT, is a process of its own that runs the training loop on real parts: the
loop, admission, dispatcher, pool, ledger and run directory (below FOLDER). Workers wait as long as
an episode takes, decode one of 4,000 tokens in 40 turns as the client of a Ray actor does, and give
it the names of its lease; the learner returns one annotation per token at once. Episodes take as
long as it needs for RATE of them to end per second. The CPU time is that of the process, all
threads, without what the simulation takes (names and annotations). What Ray takes is not in it.

Lag: how long an answer that arrives at a random moment waits for the loop. The first three columns
count no more of it than the CPU time that all threads of this process used meanwhile, so that a
busy machine gives about the figures of a quiet one; waits for the disk are not in them. "Wall p99"
has everything. The resident memory at the start is that after the first step, when as many episodes
are in flight as ever.
"""

import argparse
import asyncio
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from cluster.config.run_config import RunConfig, to_toml
from cluster.fleet.loop_lag import TICK_S, LagCounts
from cluster.fleet.pool import PoolTiming, RolloutPool
from cluster.progress import Progress
from cluster.running import run_async
from cluster.scheduling.rollouts import Rollouts
from cluster.scheduling.task_stream import TaskStream
from cluster.training.job import Job
from cluster.training.train import train_steps
from envs.tasks import Task
from learner.report import StepReport
from rollout.config import EpisodeConfig
from rollout.episode import Lease
from rollout.episode_schema import EPISODE_SCHEMA, from_wire, to_batch, to_wire
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from rollout.weights.manifest import WeightLayout, WeightManifest
from tests.benchmarks.long_episode import PROMPT, annotations_of, long_episode
from tests.cluster.conftest import Numbered

GROUP = 8
SLOTS = 64
"""Episodes that a worker runs at once."""
HEADINGS = (
    *("workers", "in flight", "episodes", "ended/s", "lag p50 ms", "p99", "max", "wall p99"),
    *("CPU ms/ episode", "RSS start MiB", "end"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table."""

    workers: int
    in_flight: int
    episodes: int
    rate: float
    folder: str

    @property
    def groups_per_step(self) -> int:
        """Half of what is in flight is of the next step (max_staleness = 1)."""
        return self.in_flight // (2 * GROUP)

    @property
    def steps(self) -> int:
        return max(2, round(self.episodes / (self.groups_per_step * GROUP)))

    @property
    def episode_s(self) -> float:
        """Mean length of an episode."""
        return min(self.workers * SLOTS, self.in_flight) / self.rate

    def config(self) -> RunConfig:
        return RunConfig.model_validate(
            {
                "model": {"max_model_len": 8192},
                "run": {"dir": self.folder, "name": "bench", "steps": self.steps},
                "rollouts": {
                    "workers": self.workers,
                    "episodes_per_worker": SLOTS,
                    "groups_per_step": self.groups_per_step,
                    "group_size": GROUP,
                    "max_staleness": 1,
                    "episode_timeout_s": 3_600.0,
                    "pool_timeout_s": 3_600.0,
                    "ping_timeout_s": 3_600.0,
                },
            }
        )


class Simulation:
    """Episodes and annotations, and the CPU time that it takes to make them."""

    def __init__(self, setting: Setting) -> None:
        self.cpu_s = 0.0
        self.ended = 0
        self.version = 0
        self._stored = to_wire(to_batch([long_episode()]))
        self._names_cost_s = 0.0
        self._mean_s = setting.episode_s
        self.steps: list[tuple[float, int]] = []
        """Resident bytes and ended episodes at the end of each step."""

    def seconds(self, lease: Lease) -> float:
        return self._mean_s * Random(lease.seed + lease.attempt).uniform(0.5, 1.5)

    def episode(self, lease: Lease, version: int, worker: str) -> pa.RecordBatch:
        """Return the episode of `lease`."""
        self.ended += 1
        return self._named(from_wire(self._stored), lease, version, worker)

    def calibrate(self) -> None:
        """Measure what it takes to name an episode: no part of the driver."""
        row, lease = from_wire(self._stored), long_episode().lease
        started = time.thread_time()
        for _ in range(1_000):
            self._named(row, lease, 1, "worker-1")
        self._names_cost_s = (time.thread_time() - started) / 1_000

    @property
    def own_cpu_s(self) -> float:
        """CPU seconds of the simulation itself."""
        return self.cpu_s + self.ended * self._names_cost_s

    def _named(
        self, row: pa.RecordBatch, lease: Lease, version: int, worker: str
    ) -> pa.RecordBatch:
        columns = dict(zip(row.schema.names, row.columns, strict=True))
        values: dict[str, Any] = {
            name: getattr(lease, name)
            for name in ("run", "episode", "group", "group_number", "task", "sample_index", "seed")
        }
        values |= {"attempt": lease.attempt, "worker": worker, "oldest_version": version}
        values["reward"] = float(lease.sample_index % 2)
        values["reward_parts"] = [("answer", values["reward"])]
        values["spans"] = [{"start": PROMPT, "version": version}]
        for name, value in values.items():
            columns[name] = pa.array([value], EPISODE_SCHEMA.field(name).type)
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=EPISODE_SCHEMA)

    async def rl_step(self, table: pa.Table, *, digest_weights: bool) -> StepReport:
        """Stand for the learner: annotations of the size of real ones."""
        annotations, cpu_s = await asyncio.to_thread(annotations_of, table)
        self.cpu_s += cpu_s
        return StepReport({"loss": 0.0, "seconds": 1.0}, annotations, [])

    async def publish_weights(self, version: int) -> WeightManifest:
        self.version = version
        self.steps.append((psutil.Process().memory_info().rss, self.ended))
        return WeightManifest(
            version=version, layout=WeightLayout(()), transport="shm", path="", checksum=""
        )

    async def save_checkpoint(self, path: Path, step: int) -> None:
        path.mkdir(parents=True)


@dataclass
class SimulatedWorker:
    """WorkerClient that waits as long as an episode takes."""

    name: str
    simulation: Simulation
    version: int = field(default=0)

    async def start(self) -> None: ...

    async def run_episode(self, lease: Lease, task: Task, config: EpisodeConfig) -> pa.RecordBatch:
        version = self.version
        await asyncio.sleep(self.simulation.seconds(lease))
        return self.simulation.episode(lease, version, self.name)

    async def load_weights(self, manifest: WeightManifest) -> None:
        await asyncio.sleep(0)
        self.version = manifest.version

    async def ping(self) -> None:
        await asyncio.sleep(0)

    def kill(self) -> None: ...


async def train(setting: Setting) -> list[float]:
    """Run the training loop; return the row without its first two cells."""
    config, simulation = setting.config(), Simulation(setting)
    pool = RolloutPool(
        lambda name: SimulatedWorker(name, simulation), config.rollouts, PoolTiming()
    )
    run = RunDirectory.create(
        config.path, to_toml(config), RunInfo(run="bench", seed=0, created_at=0.0)
    )
    lag = Delays()
    simulation.calibrate()
    with run:
        pool.resize(setting.workers)
        await pool.wait_healthy(setting.workers)
        rollouts = Rollouts(pool, TaskStream(Numbered(), "train", 0), run, config)
        learner: Any = simulation
        job = Job(config, run, pool, rollouts, learner, None)
        lag.start()
        began, cpu = time.monotonic(), cpu_seconds()
        await train_steps(job, Progress())
        cpu_s, wall_s = cpu_seconds() - cpu - simulation.own_cpu_s, time.monotonic() - began
        lag.close()
        await pool.close()
    own, wall, steps = lag.own.take(), lag.wall.take(), simulation.steps
    late = [1_000 * seconds for seconds in (own.p50_s, own.p99_s, own.max_s, wall.p99_s)]
    ended = simulation.ended
    memory = [resident / 2**20 for resident, _ in (steps[0], steps[-1])]
    return [ended, ended / wall_s, *late, 1_000 * cpu_s / ended, *memory]


class Delays:
    """How late timers of the loop fire: by the clock, and by the CPU time of this process."""

    def __init__(self) -> None:
        self.own, self.wall = LagCounts(), LagCounts()
        self._running = False

    def start(self) -> None:
        self._running = True
        self._tick_at(asyncio.get_running_loop().time() + TICK_S, time.process_time())

    def close(self) -> None:
        self._running = False

    def _tick_at(self, due: float, used_s: float) -> None:
        asyncio.get_running_loop().call_at(due, self._tick, due, used_s)

    def _tick(self, due: float, used_before_s: float) -> None:
        if not self._running:
            return
        late_s = max(asyncio.get_running_loop().time() - due, 0.0)
        used_s = time.process_time()
        self.own.note(min(late_s, used_s - used_before_s))
        missed = self.wall.note(late_s)
        self._tick_at(due + (missed + 1) * TICK_S, used_s)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(setting: Setting) -> list[float]:
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        return run_async(train(replace(setting, folder=folder)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", default=["10:8192", "100:8192", "1000:8192"])
    parser.add_argument("--episodes", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    options = parser.parse_args(arguments)
    table = Table(*HEADINGS)
    processes = multiprocessing.get_context("spawn")
    for row in options.rows:
        workers, in_flight = map(int, row.split(":"))
        setting = Setting(
            workers=workers,
            in_flight=in_flight,
            episodes=options.episodes,
            rate=options.rate,
            folder=options.folder,
        )
        with processes.Pool(1) as process:  # a fresh process, so that memory is comparable
            values = process.apply(measure, (setting,))
        digits = (0, 0, 1, 1, 0, 0, 2, 0, 0)
        cells = [f"{value:,.{n}f}" for value, n in zip(values, digits, strict=True)]
        table.add_row(f"{workers:,}", f"{in_flight:,}", *cells)
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
