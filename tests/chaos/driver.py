"""The driver of a chaos run: `trialrun train --requeue` with an injector beside its event loop.

python -m tests.chaos.driver PLAN.json
"""

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.config.run_config import load_config
from cluster.fleet.open_pool import open_pool
from cluster.fleet.ray_environment import prepare_environment
from cluster.fleet.ray_session import ray_session
from cluster.fleet.survivors.lasting import lasting_key
from cluster.lifecycle.inputs import RunInputs, resolve_inputs
from cluster.lifecycle.opening import Resume, check_run
from cluster.progress import Progress
from cluster.running import run_async
from cluster.training.train import train_on
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind
from tests.chaos.disks import Disk
from tests.chaos.faults import Blow, Fault, Target
from tests.chaos.injector import Injector
from tests.chaos.journal import Journal
from tests.chaos.processes import Processes
from tests.chaos.scene import Scene
from tests.chaos.slow_engine import FACTORY

_TAIL = 3
"""Last steps in which nothing is injected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one chaos run does."""

    overrides: list[str]
    schedule: list[Fault]
    journal: str
    mark: str
    """What the command lines of the raylets contain."""
    disk: str = ""
    """Folder of the run directory's own disk; empty for none."""
    switch: str = ""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Plan":
        plan = json.loads(path.read_text())
        schedule = [
            Fault(**{**fault, "target": Target(fault["target"]), "blow": Blow(fault["blow"])})
            for fault in plan.pop("schedule")
        ]
        return cls(**plan, schedule=schedule)


async def train_under_fire(
    plan: Plan, inputs: RunInputs, run: RunDirectory, progress: Progress
) -> None:
    """Train as `train` does, while the faults of `plan` are injected."""
    disk = Disk(Path(plan.disk), Path(plan.switch)) if plan.disk else None
    key = lasting_key(run.path, run.info.created_at)
    async with open_pool(inputs.config, inputs.model, run.path, FACTORY, key) as pool:
        scene = Scene(pool, Processes(plan.mark), run.path, inputs.config.learner.ranks)
        last_step = inputs.config.run.steps - _TAIL
        injector = Injector(scene, plan.schedule, Journal(Path(plan.journal)), disk, last_step)
        injector.start()
        try:
            await train_on(pool, inputs, run, progress)
        finally:
            await asyncio.to_thread(injector.stop)


def main(path: Path) -> None:
    plan = Plan.read(path)
    prepare_environment()
    config = load_config("catalog", plan.overrides)
    progress = Progress()
    opening = check_run(RunKind.TRAIN, config.path, config, Resume.IF_PRESENT)
    inputs = resolve_inputs(config)
    with (
        ray_session(config),
        opening.open(progress) as run,
        progress.logged(run.layout.log),
    ):
        run_async(train_under_fire(plan, inputs, run, progress))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
