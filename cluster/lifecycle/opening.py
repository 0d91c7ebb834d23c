"""The life of a run directory: created, opened, refused or resumed."""

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from cluster.config.environments import make_environment
from cluster.config.run_config import RunConfig, load_config, to_toml
from cluster.lifecycle.resume_check import check_same, differences
from cluster.lifecycle.retention import newest_checkpoint
from cluster.progress import Progress
from learner.pretrained.resolve import check_folder_context, resolve_model
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunLayout
from rollout.template import ChatTemplate

_SAME = (
    *("model", "env", "episode", "run.seed", "run.deterministic", "rollouts.group_size"),
    *("learner.ranks", "learner.zero_stage", "learner.optimizer"),
    *("learner.betas", "learner.weight_decay"),
)
"""What must be as before where a run goes on: its tasks, its episodes, its optimizer's state."""


_PLACES = ("run.dir", "run.name", "run.models_dir")
STACK = ("torch", "deepspeed", "ray", "transformers", "pyarrow")


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


def next_free(folder: Path, name: str) -> Path:
    """Return `folder/name-NNN` with the first number that is not taken."""
    number = 1
    while (path := folder / f"{name}-{number:03d}").exists():
        number += 1
    return path
