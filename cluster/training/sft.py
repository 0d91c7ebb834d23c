"""SFT: the policy imitates episodes that succeeded; once stopped, it goes on."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pyarrow as pa

from cluster.config.run_config import RunConfig, load_config
from cluster.fleet.learner_group import LearnerGroup
from cluster.fleet.ray_session import ray_session
from cluster.lifecycle.opening import find_model, new_run
from cluster.lifecycle.resume_check import check_same
from cluster.lifecycle.retention import keep_newest, newest_checkpoint
from cluster.progress import Progress
from cluster.running import run_async
from cluster.teachers.teach import teach, teacher_folder
from cluster.training.sft_data import lessons, parse_source
from envs.errors import ConfigError, StoreError
from envs.tools import JsonObject
from learner.config import check_adapters
from rollout.store.journal import replace_file
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunLayout
from rollout.store.run_reader import RunReader
from rollout.template import ChatTemplate

_MADE_FROM = "lessons.json"
"""In the run directory: what is imitated, by its digest."""
_SAME = ("model", "env", "episode", "teacher", "sft", "run.seed", "learner.ranks")
"""What must be as before where an SFT goes on."""


@contextmanager
def open_sft(config: RunConfig, path: Path, *, resume: bool) -> Iterator[RunDirectory]:
    """Create the run directory of an SFT, or open it to go on where there is one.

    Raises StoreError where there is one and `resume` is not set, ConfigError where it was begun
    under other settings.
    """
    layout = RunLayout(path)
    if not layout.run_json.exists():
        run = new_run(path, config)
    elif resume:
        before = load_config(str(layout.config_toml))
        check_same(f"the SFT in {path}", before, config, _SAME, but=("sft.checkpoint_every",))
        run = RunDirectory.open(path)
    else:
        raise StoreError(
            f"there is a run in {path} already: go on with --resume, or choose another run.name"
        )
    with run:
        yield run


async def imitate(
    config: RunConfig, model: Path, table: pa.Table, run: RunDirectory, progress: Progress
) -> list[dict[str, float]]:
    """Train the model on the policy turns of `table`, export it to the run's folder `model`, and
    return the metrics per step.

    Goes on from the newest checkpoint of `run`, bit for bit as without the stop, and repeats
    nothing that is finished. Raises ConfigError where that was begun with other episodes.
    """
    _check_lessons(run.path, table)
    if not run.layout.model.exists():
        await _train(config, model, table, run, progress)
    return [row.values for row in RunReader(run.path).metrics()]


async def _train(
    config: RunConfig, model: Path, table: pa.Table, run: RunDirectory, progress: Progress
) -> None:
    checkpoints = run.layout.checkpoints
    told = RunReader(run.path).metrics()
    # ranks are ahead of what they told: a checkpoint may be of steps whose metrics a kill took
    begun = newest_checkpoint(checkpoints, most=told[-1].step if told else 0)
    learner = LearnerGroup(config, str(model), config.sft)
    try:
        await learner.start()
        done = await learner.load_checkpoint(begun) if begun else 0
        if done:
            progress.say(f"going on from the checkpoint of step {done}")
        async for row in learner.sft(table, config.run.seed, checkpoints, done):
            progress.imitated(row)
            step = int(row.pop("step"))
            run.record_metrics(step, row)
            keep_newest(checkpoints, config.run.keep_checkpoints, most=step)
        await learner.export_model(run.layout.model)
    finally:
        await learner.close()
    run.sync()
    for left in checkpoints.iterdir():  # nothing goes on from them: the model is whole
        shutil.rmtree(left)


def _check_lessons(run: Path, table: pa.Table) -> None:
    """Note what is imitated; raise ConfigError where the run was begun with something else."""
    described: JsonObject = {"episodes": table.num_rows, "digest": _digest_of(table)}
    path = run / _MADE_FROM
    if not path.exists():
        replace_file(path, json.dumps(described).encode())
        return
    before = json.loads(path.read_bytes())
    if before != described:
        raise ConfigError(
            f"the SFT in {run} was begun with {before['episodes']} other episodes than these "
            f"{table.num_rows}: go on with the same --from, or choose another run.name"
        )


def _digest_of(table: pa.Table) -> str:
    """Return a hash of the episodes' names and tokens, in their order."""
    lengths = [n for chunk in table["token_ids"].chunks for n in chunk.value_lengths().to_pylist()]
    found = sha256(json.dumps([table["episode"].to_pylist(), lengths]).encode())
    for chunk in table["token_ids"].chunks:
        found.update(chunk.flatten().to_numpy().tobytes())
    return found.hexdigest()


def run_sft(config: RunConfig, sources: Sequence[str], *, resume: bool) -> JsonObject:
    """Imitate what run directories (`DIR` or `DIR=WEIGHT`) hold, or the environment's scripted
    teacher where there are none; `resume` goes on with an SFT that was stopped.
    """
    progress = Progress()
    check_adapters(config.model.lora, config.sft)
    model = find_model(config)
    chosen = [parse_source(source) for source in sources]
    template = ChatTemplate.load(model)
    with open_sft(config, config.path, resume=resume) as run:
        if chosen:
            table = lessons(chosen, template, config.run.seed)
        else:
            progress.say(f"playing {config.teacher.episodes} teacher episodes")
            lesson = run_async(teach(config, model, teacher_folder(run.path)))
            table = lesson.table
            progress.say(f"{table.num_rows} of {lesson.played} succeeded")
        with ray_session(config):
            metrics = run_async(imitate(config, model, table, run, progress))
    return {
        "model": str(run.layout.model),
        "episodes": table.num_rows,
        "steps": len(metrics),
        "first_loss": metrics[0]["loss"],
        "last_loss": metrics[-1]["loss"],
    }
