"""Asynchronous against synchronous training, by how long tools take: real vLLM and DeepSpeed.

Run: python -m tests.benchmarks.bench_async --model FOLDER [--steps 12] [--latencies 0 50 tail]

FOLDER is a taught model that calls tools, such as the one of `trialrun sft catalog`. A latency is
in milliseconds; `tail` is a Pareto distribution that is cut at 5 s (`slow_answers.py`). It is added
where an episode reads the answer of a tool, which runs in its sandbox as ever. Synchronous is
`rollouts.max_staleness=0`: a step waits for all of its episodes, and they for its weights.
Asynchronous is 1, the default, and 2: the next steps' episodes are played meanwhile. Wait is the
share of the time in which the learner has no groups to learn from; dropped are the groups that came
too late for their staleness, which are played in vain. The first two steps are not counted.
"""

import argparse
import asyncio
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.config.run_config import RunConfig, load_config
from cluster.fleet.open_pool import open_pool
from cluster.fleet.ray_session import ray_session
from cluster.lifecycle.inputs import RunInputs, resolve_inputs
from cluster.lifecycle.opening import Resume, open_run
from cluster.progress import QUIET
from cluster.training.train import train_on
from rollout.store.run_layout import RunKind
from rollout.store.run_reader import RunReader
from tests.benchmarks.slow_answers import WHERE
from tests.e2e.conftest import LESSONS

_NOT_COUNTED = 2
_STALENESS = (0, 1, 2)
_FACTORY = "tests.benchmarks.slow_answers:make_engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one run took."""

    latency: str
    staleness: int
    steps_per_h: float
    wait: float
    dropped: float
    calls: float


def recipe(model: str, folder: Path, steps: int, staleness: int, name: str) -> RunConfig:
    places = (f"run.dir={folder}", f"run.models_dir={folder / 'models'}", f"model.path={model}")
    sizes = (
        *("rollouts.workers=1", "rollouts.episodes_per_worker=64", "rollouts.groups_per_step=4"),
        *("rollouts.group_size=4", "rollouts.max_refills=0", f"rollouts.max_staleness={staleness}"),
        *("rollouts.max_drops_per_group=64", f"run.steps={steps}", "run.checkpoint_every=1000"),
    )
    return load_config("catalog", [*places, *LESSONS, *sizes, f"run.name={name}"])


def row_of(run: Path, latency: str, staleness: int) -> Row:
    """Summarise a finished run."""
    rows = [row.values for row in RunReader(run).metrics()][_NOT_COUNTED:]
    total_s = sum(row["step_s"] for row in rows)
    return Row(
        latency=latency,
        staleness=staleness,
        steps_per_h=3600 * len(rows) / total_s,
        wait=sum(row["collect_s"] for row in rows) / total_s,
        dropped=sum(row["stale_groups"] for row in rows) / len(rows),
        calls=sum(row["trial_calls"] for row in rows) / len(rows),
    )


async def measure(model: str, folder: Path, steps: int, latencies: list[str]) -> list[Row]:
    """Train once per latency and staleness, on one worker that serves all runs."""
    switch, found = Path(os.environ[WHERE]), []
    base = resolve_inputs(recipe(model, folder, steps, 0, "pool"))
    async with open_pool(base.config, base.model, folder, engine_factory=_FACTORY) as pool:
        for latency in latencies:
            switch.write_text(latency)
            for staleness in _STALENESS:
                config = recipe(model, folder, steps, staleness, f"{latency}-{staleness}")
                inputs: RunInputs = replace(base, config=config)
                with open_run(RunKind.TRAIN, config.path, config, Resume.NO, QUIET) as run:
                    await train_on(pool, inputs, run, QUIET)
                found.append(row_of(config.path, latency, staleness))
    return found


def show(rows: list[Row]) -> None:
    table = Table(title="Steps per hour, by what a tool call takes")
    for heading in ("latency", "staleness", "steps/h", "ratio", "wait", "dropped", "calls"):
        table.add_column(heading, justify="right")
    synchronous = {row.latency: row.steps_per_h for row in rows if row.staleness == 0}
    for row in rows:
        table.add_row(
            row.latency if row.latency == "tail" else f"{row.latency} ms",
            str(row.staleness),
            f"{row.steps_per_h:.0f}",
            f"{row.steps_per_h / synchronous[row.latency]:.2f}",
            f"{row.wait:.0%}",
            f"{row.dropped:.1f}",
            f"{row.calls:.1f}",
        )
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a taught model")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--latencies", nargs="+", default=["0", "50", "tail"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.environ[WHERE] = str(Path(folder) / "latency")
        config = recipe(options.model, Path(folder), options.steps, 0, "pool")
        with ray_session(config):
            work = measure(options.model, Path(folder), options.steps, options.latencies)
            show(asyncio.run(work))


if __name__ == "__main__":
    main()
