"""SFT: training on the policy turns of correct episodes, resumable."""

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import pyarrow as pa

from cluster.config.fleet_config import DEFAULT_GROUP
from cluster.config.run_config import RunConfig
from cluster.fleet.learner_group import LearnerGroup
from cluster.fleet.placement.demand import demand_of, missing_resources
from cluster.fleet.ray_session import ray_session
from cluster.jobs.directories import RUN_DIRECTORY_IS
from cluster.lifecycle.inputs import RunInputs, find_model, resolve_inputs
from cluster.lifecycle.model_checks import check_training
from cluster.lifecycle.opening import Resume, prepare_run
from cluster.lifecycle.retention import keep_newest, newest_checkpoint
from cluster.lifecycle.trust import signing_of
from cluster.progress import Progress
from cluster.running import run_async
from cluster.scheduling.tool_check import say_of_tools, training_sample
from cluster.sinks.choosing import check_sinks, open_sinks
from cluster.teachers.teacher import check_teacher, run_teacher
from cluster.training.learner_restarts import unless_lost, with_restarts
from cluster.training.sft_data import parse_source, sft_table
from envs.errors import ConfigError
from envs.tools import JsonObject
from learner.config import check_adapters
from rollout.chat.template import ChatTemplate
from rollout.store.journal import replace_file
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunKind, RunLayout
from rollout.store.run_reader import RunReader
from rollout.store.shared_files import read_bytes, remove_folder, remove_left_overs


async def train_sft(
    config: RunConfig, model: Path, table: pa.Table, run: RunDirectory, progress: Progress
) -> list[dict[str, float]]:
    """Train the model on the policy turns of `table`, export it to the run's folder `model`, and
    return the metrics per step.

    Resumes from the newest checkpoint of `run`, bit for bit as if it had not been stopped, and
    repeats nothing that is finished. Raises ConfigError where the run started with other episodes.
    """
    _check_data(run.layout, table)
    if not run.layout.model.exists():
        await with_restarts(
            lambda: _train(config, model, table, run, progress),
            lambda: newest_checkpoint(run.layout.checkpoints),
            config.cluster.learner_restarts,
            progress,
        )
    return [row.values for row in RunReader(run.path).metrics()]


async def _train(
    config: RunConfig, model: Path, table: pa.Table, run: RunDirectory, progress: Progress
) -> None:
    checkpoints = run.layout.checkpoints
    recorded = RunReader(run.path).metrics()
    # Ranks save before the driver records: a checkpoint may hold steps whose metrics a kill took.
    newest = newest_checkpoint(checkpoints, most=recorded[-1].step if recorded else 0)
    learner = LearnerGroup(config, str(model), config.sft, signing_of(run.layout))
    try:
        progress.phase("starting the learner")
        await learner.check_folder(run.path)
        await learner.start()
        await unless_lost(_all_steps(config, learner, table, run, progress, newest), learner)
    finally:
        await learner.close()
    await run.synced()
    for checkpoint in checkpoints.iterdir():  # not needed: the exported model is complete
        if not checkpoint.name.startswith("."):
            remove_folder(checkpoint)
    remove_left_overs(checkpoints)


async def _all_steps(
    config: RunConfig,
    learner: LearnerGroup,
    table: pa.Table,
    run: RunDirectory,
    progress: Progress,
    newest: Path | None,
) -> None:
    """Make the steps after the checkpoint `newest`, and export the model."""
    checkpoints = run.layout.checkpoints
    done = await learner.load_checkpoint(newest) if newest else 0
    if done:
        progress.say(f"resuming from the checkpoint of step {done}")
    progress.phase(f"SFT on {table.num_rows} episodes, {config.sft.epochs} epochs")
    with open_sinks(config, run.layout) as sinks:
        async for row in learner.sft(table, config.run.seed, checkpoints, done):
            progress.sft_step(row)
            step = int(row.pop("step"))
            run.record_metrics(step, row)
            sinks.record(step, row)
            keep_newest(checkpoints, config.run.keep_checkpoints, most=step)
    progress.phase("exporting the model")
    await learner.export_model(run.layout.model)


def _check_data(layout: RunLayout, table: pa.Table) -> None:
    """Record the digest of the SFT data. Raises ConfigError where the run started with others."""
    described: JsonObject = {"episodes": table.num_rows, "digest": _digest_of(table)}
    stored = next((p for p in (layout.sft_data, layout.older_sft_data) if p.exists()), None)
    if stored is None:
        replace_file(layout.sft_data, json.dumps(described).encode())
        return
    before = json.loads(read_bytes(stored))
    if before != described:
        raise ConfigError(
            f"the SFT run in {layout.root} was started with {before['episodes']} other episodes "
            f"than these {table.num_rows}: resume with the same --from, or choose another run.name"
        )


def _digest_of(table: pa.Table) -> str:
    """Return a hash of the episodes' names and tokens, in their order."""
    lengths = [n for chunk in table["token_ids"].chunks for n in chunk.value_lengths().to_pylist()]
    found = sha256(json.dumps([table["episode"].to_pylist(), lengths]).encode())
    for chunk in table["token_ids"].chunks:
        found.update(chunk.flatten().to_numpy().tobytes())
    return found.hexdigest()


def run_sft(
    config: RunConfig,
    sources: Sequence[str],
    *,
    resume: bool,
    requeue: bool = False,
    trusted: bool = False,
) -> JsonObject:
    """Train on the episodes of run directories (`DIR` or `DIR=WEIGHT`), or on those of the
    environment's scripted teacher where there are none; `resume` resumes a run that was stopped,
    also from `trusted` checkpoints of somebody else.
    """
    progress = Progress()
    check_sinks(config)
    check_adapters(config.model.lora, config.sft)
    progress.phase("preparing the model")
    wanted = Resume.flag(resume=resume, requeue=requeue)
    opening = prepare_run(RunKind.SFT, config.path, config, wanted, progress, trusted=trusted)
    model, table_for = _data_of(config, sources, progress)
    if note := check_training(config, config.sft, model):
        progress.say(note)
    progress.phase(f"starting Ray; {RUN_DIRECTORY_IS}{config.path.absolute()}")
    with (
        ray_session(config),
        opening.open(progress) as run,
        progress.logged(run.layout.log),
    ):
        if note := missing_resources(demand_of(config, {DEFAULT_GROUP: 0})):
            progress.say(note)
        table = table_for(run)
        metrics = run_async(train_sft(config, model, table, run, progress))
    return {
        "model": str(run.layout.model),
        "episodes": table.num_rows,
        "steps": len(metrics),
        "first_loss": metrics[0]["loss"],
        "last_loss": metrics[-1]["loss"],
    }


def _data_of(
    config: RunConfig, sources: Sequence[str], progress: Progress
) -> tuple[Path, Callable[[RunDirectory], pa.Table]]:
    """Return the model's folder, and what gives the SFT data of a run once that is open.

    Raises ConfigError where sources have no data, or the environment has no scripted teacher.
    """
    if sources:
        model = find_model(config)
        chosen = [parse_source(source) for source in sources]
        template, name = ChatTemplate.load(model, config.model), config.model.tool_format
        table = sft_table(chosen, template, config.run.seed, name)
        return model, lambda run: table
    inputs = resolve_inputs(config)
    check_teacher(inputs)
    say_of_tools(config, training_sample(config, inputs.environment), progress)
    return inputs.model, lambda run: run_async(_demonstrated(inputs, run, progress))


async def _demonstrated(inputs: RunInputs, run: RunDirectory, progress: Progress) -> pa.Table:
    progress.phase(f"teacher: running {inputs.config.teacher.episodes} episodes")
    found = await run_teacher(inputs, run.layout.teacher, progress)
    progress.say(f"{found.table.num_rows} of {found.episodes} are correct")
    return found.table
