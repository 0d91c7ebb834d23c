"""The stages of a study on the real stack: SFT and RL models, then evaluations on a shared pool."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import pyarrow as pa

from cluster.config.run_config import RunConfig
from cluster.lifecycle.inputs import Environments, RunInputs, find_model
from cluster.lifecycle.opening import Resume, open_run
from cluster.lifecycle.stored_config import stored_config
from cluster.older_metrics import read_metrics
from cluster.progress import Progress
from cluster.scheduling.prompt_check import tasks_with_room
from cluster.scheduling.task_sources import eval_tasks
from cluster.study.eval_pool import EvalPool, measure
from cluster.study.graph import Results, Stage
from cluster.study.recipe import Study, fingerprint
from cluster.study.results import ModelResult
from cluster.teachers.teacher import Demonstrations, run_teacher
from cluster.training.job import open_job
from cluster.training.sft import train_sft
from cluster.training.train import train_steps, warn_of_long_prompts
from envs.seeds import stable_hash
from envs.tools import JsonObject
from rollout.store.run_layout import RunKind, RunLayout
from rollout.store.run_reader import RunReader

WEIGHTS = "model"
"""Folder of a model stage that holds its model, in Hugging Face's layout."""

_PLAYED = ("model", "env", "tools", "episode")
_USED = {
    "sft": (*_PLAYED, "teacher", "sft"),
    "grpo": (*_PLAYED, "run", "rollouts", "learner"),
}
"""Sections of the recipe that a model's training depends on; other keys do not change the model."""


@dataclass(frozen=True, slots=True)
class SftOutcome:
    """What came of an SFT run on a scripted teacher's episodes."""

    data: Demonstrations
    metrics: Sequence[dict[str, float]]

    @property
    def line(self) -> str:
        """A summary in one line."""
        return (
            f"SFT on {self.data.table.num_rows} of {self.data.episodes} episodes in "
            f"{len(self.metrics)} steps, loss {self.metrics[0]['loss']:.2f} to "
            f"{self.metrics[-1]['loss']:.3f}"
        )


async def sft_from_teacher(
    inputs: RunInputs, path: Path, progress: Progress, tokens: int = 0
) -> SftOutcome:
    """Train the model on episodes of the recipe's teacher in the run directory `path`, which is
    resumed if it exists. With `tokens`, for as many epochs as it takes to see that many.
    """
    config = inputs.config
    with open_run(RunKind.SFT, path, config, Resume.IF_PRESENT, progress) as run:
        progress.phase(f"teacher: running {config.teacher.episodes} episodes")
        data = await run_teacher(inputs, run.layout.teacher, progress)
        if tokens:
            epochs = max(1, ceil(tokens / tokens_of(data.table)))
            config = with_values(config, "sft", epochs=epochs)
        return SftOutcome(data, await train_sft(config, inputs.model, data.table, run, progress))


def tokens_of(table: pa.Table) -> int:
    """Return the tokens of all episodes, prompts and observations included."""
    return sum(len(chunk.flatten()) for chunk in table["token_ids"].chunks)


@dataclass(frozen=True, slots=True)
class SeedContext:
    """What the stages of one seed share."""

    root: Path
    """Folder of the seed; every stage has its own below."""
    pool: EvalPool
    environments: Environments
    progress: Progress


def seed_stages(study: Study, seed: SeedContext) -> list[Stage]:
    """Return every stage of one seed: models, then evaluations."""
    models = [_model_stage(study, seed, name) for name in _in_order(study)]
    keys = tuple(stage.key for stage in models)
    arms = sorted(study.section.arms, key=lambda arm: _model_rank(study, arm))
    return models + [
        _evaluation_stage(study, seed, (arm, setting, temperature), keys)
        for arm in arms
        for setting in study.section.settings
        for temperature in study.section.temperatures
    ]


def evaluation_key(arm: str, setting: str, temperature: str) -> str:
    """Return the key of an evaluation's stage."""
    return f"evals/{arm}/{setting}/{temperature}"


def is_evaluation(key: str) -> bool:
    """Whether the stage of `key` is an evaluation."""
    return key.startswith("evals/")


def model_key(name: str) -> str:
    """Return the key of a model's stage."""
    return f"models/{name}"


def with_values(config: RunConfig, section: str, **values: object) -> RunConfig:
    """Return `config` with values of one section replaced; they are not checked."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def _in_order(study: Study) -> list[str]:
    """Return the models so that each comes after those it builds on; SFT models first."""
    waiting, ordered = dict(study.section.models), list[str]()
    while waiting:
        ready = [
            name
            for name, model in waiting.items()
            if all(other in ordered for other in (model.parent, model.match) if other)
        ]
        ready.sort(key=lambda name: waiting[name].kind != "sft")
        ordered.append(ready[0])
        del waiting[ready[0]]
    return ordered


def _model_rank(study: Study, arm: str) -> int:
    """Sort key of arms: evaluations of one model follow each other, so that it is pushed once."""
    return _in_order(study).index(study.section.arms[arm].model)


def _model_stage(study: Study, seed: SeedContext, name: str) -> Stage:
    model, config = study.section.models[name], study.training(name)
    progress = seed.progress.named(name)
    if model.parent and model.kind == "sft":  # or it would train on its parent's data again
        config = with_values(config, "run", seed=stable_hash("study", config.run.seed, name))

    async def make(folder: Path, results: Results) -> JsonObject:
        parent = (
            seed.root / model_key(model.parent) / WEIGHTS
            if model.parent
            else find_model(study.config)
        )
        inputs = RunInputs(config, parent, seed.environments.of(config))
        if model.kind == "grpo":
            return (await _rl_model(inputs, folder, progress)).to_json()
        if not model.match:
            return (await _sft_model(inputs, folder, progress)).to_json()
        matched = ModelResult.model_validate(results[model_key(model.match)])
        as_many = with_values(config, "teacher", episodes=matched.played_episodes)
        inputs = replace(inputs, config=as_many)
        made = await _sft_model(inputs, folder, progress, matched.trained_tokens)
        return made.to_json()

    needs = tuple(model_key(other) for other in (model.parent, model.match) if other)
    inputs = {
        "kind": model.kind,
        "match": model.match,
        "recipe": fingerprint(config, *_USED[model.kind]),
    }
    slots = 1 if model.kind == "sft" else study.section.slots
    return Stage(model_key(name), needs, inputs, make, slots)


async def _sft_model(
    inputs: RunInputs, folder: Path, progress: Progress, tokens: int = 0
) -> ModelResult:
    """Run SFT in the run directory `folder`, resuming a killed attempt if there is one."""
    if not is_attempt(folder, inputs.config, "sft"):
        shutil.rmtree(folder)
    made = await sft_from_teacher(inputs, folder, progress, tokens)
    return ModelResult(
        played_episodes=made.data.episodes,
        kept_episodes=made.data.table.num_rows,
        trained_tokens=_trained_tokens(made.metrics),
        optimizer_steps=len(made.metrics),
        first_loss=made.metrics[0]["loss"],
        last_loss=made.metrics[-1]["loss"],
    )


async def _rl_model(inputs: RunInputs, folder: Path, progress: Progress) -> ModelResult:
    """Train with RL, from the newest checkpoint of a killed attempt if there is one."""
    config = with_values(inputs.config, "model", path=str(inputs.model))
    config = with_values(config, "run", dir=str(folder), name="run")
    if not is_attempt(config.path, config, "grpo"):
        shutil.rmtree(config.path, ignore_errors=True)
    inputs = replace(inputs, config=config, model=find_model(config))
    warn_of_long_prompts(inputs, progress)
    with open_run(RunKind.TRAIN, config.path, config, Resume.IF_PRESENT, progress) as run:
        async with open_job(inputs, run) as job:
            await train_steps(job, progress)
            await job.learner.export_model(folder / WEIGHTS)
    reader = RunReader(config.path)
    rows = [row.values for row in reader.metrics()]
    return ModelResult(
        played_episodes=len(reader.episodes()),
        trained_tokens=_trained_tokens(rows),
        optimizer_steps=int(sum(row.get("optimizer_steps", 0.0) for row in rows)),
        first_answers=_accuracy(rows[0]),
        last_answers=_accuracy(rows[-1]),
    )


def _accuracy(row: dict[str, float]) -> float | None:
    """Return the success of a step; a step that an older version trained has another name for it,
    and one without any answer has none.
    """
    values = read_metrics(row)
    return values.get("success", values.get("answer_mean"))


def is_attempt(path: Path, config: RunConfig, kind: str) -> bool:
    """Whether `path` holds a killed attempt that, once resumed, makes the model of `config`."""
    layout = RunLayout(path)
    if not layout.run_json.exists():
        return False
    before = stored_config(layout.config_toml)
    return fingerprint(before, *_USED[kind]) == fingerprint(config, *_USED[kind])


def _trained_tokens(rows: Sequence[dict[str, float]]) -> int:
    return int(sum(row["sequence_tokens"] for row in rows))


def _evaluation_stage(
    study: Study, seed: SeedContext, cell: tuple[str, str, str], models: tuple[str, ...]
) -> Stage:
    arm = study.section.arms[cell[0]]
    config = study.evaluating(*cell)
    weights = seed.root / model_key(arm.model) / WEIGHTS

    async def run(folder: Path, results: Results) -> JsonObject:
        del results
        at = seed.pool.recording(with_values(config, "model", path=str(weights)))
        given = RunInputs(at, weights, seed.environments.of(at))
        tasks = eval_tasks(at, given.environment)
        tasks, _ = tasks_with_room(given, tasks)
        path = folder / "run"
        if not RunLayout(path).run_json.exists():
            shutil.rmtree(path, ignore_errors=True)
        pool = await seed.pool.serve(weights)
        summary = await measure(at, pool, path, tasks, seed.progress.named("/".join(cell)))
        return {"arm": cell[0], "setting": cell[1], "temperature": cell[2], **summary.to_json()}

    inputs = {"recipe": fingerprint(config, *_PLAYED, "eval")}
    key, slots = evaluation_key(*cell), study.section.slots
    return Stage(key, (model_key(arm.model),), inputs, run, slots, models)
