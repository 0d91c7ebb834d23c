"""The stages of a study on the real stack: imitate, reinforce, and evaluate on a shared pool."""

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import pyarrow as pa

from cluster.config.run_config import RunConfig, load_config
from cluster.evaluation.evaluate import eval_tasks, evaluate, reopened
from cluster.fleet.open_pool import open_pool
from cluster.fleet.pool import RolloutPool
from cluster.fleet.weight_relay import place_here
from cluster.lifecycle.opening import find_model, new_run, open_run
from cluster.progress import Progress
from cluster.study.graph import Results, Stage
from cluster.study.recipe import Study, fingerprint
from cluster.teachers.teach import Lesson, teach, teacher_folder
from cluster.training.job import open_job
from cluster.training.sft import imitate, open_sft
from cluster.training.train import reinforce
from envs.seeds import stable_hash
from envs.tasks import Task
from envs.tools import JsonObject
from learner.outputs.publish import SharedMemoryPublisher
from learner.pretrained.folder import folder_weights
from rollout.evaluation.summary import EvalSummary
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunLayout
from rollout.store.run_reader import RunReader
from rollout.weights.layout import checkpoint_layout

WEIGHTS = "model"
"""Folder of a model stage that holds what it made, in Hugging Face's layout."""

_PLAYED = ("model", "env", "tools", "episode")
_USED = {
    "sft": (*_PLAYED, "teacher", "sft"),
    "grpo": (*_PLAYED, "run", "rollouts", "learner"),
}
"""Sections of the recipe that a model's training depends on: another key makes no other model."""


@dataclass(frozen=True, slots=True)
class Taught:
    """What came of an imitation."""

    lesson: Lesson
    metrics: Sequence[dict[str, float]]

    @property
    def line(self) -> str:
        """It in words."""
        return (
            f"imitated {self.lesson.table.num_rows} of {self.lesson.played} episodes in "
            f"{len(self.metrics)} steps, loss {self.metrics[0]['loss']:.2f} to "
            f"{self.metrics[-1]['loss']:.3f}"
        )


async def taught(config: RunConfig, model: Path, path: Path, tokens: int = 0) -> Taught:
    """Let `model` imitate the teacher of the recipe in the run directory `path`, going on where
    that was begun. With `tokens`, for as many epochs as it takes to see so many.
    """
    with open_sft(config, path, resume=True) as run:
        lesson = await teach(config, model, teacher_folder(path))
        if tokens:
            epochs = max(1, ceil(tokens / tokens_of(lesson.table)))
            config = with_values(config, "sft", epochs=epochs)
        return Taught(lesson, await imitate(config, model, lesson.table, run, Progress(quiet=True)))


def tokens_of(table: pa.Table) -> int:
    """Return the tokens of all episodes, prompts and observations included."""
    return sum(len(chunk.flatten()) for chunk in table["token_ids"].chunks)


@asynccontextmanager
async def serving(
    config: RunConfig, pool: RolloutPool, model: Path, version: int
) -> AsyncIterator[None]:
    """Let the pool's engines serve the weights in folder `model`, as policy `version`."""
    layout = checkpoint_layout(str(model), config.model.dtype)
    publisher = SharedMemoryPublisher(Path(config.cluster.shm_dir), layout)
    here = place_here(config.cluster.shm_dir)
    try:
        manifest = publisher.publish(version, folder_weights(model))
        await pool.load_weights(replace(manifest, place=here))
        yield
    finally:
        publisher.close()


async def measured(
    config: RunConfig, pool: RolloutPool, path: Path, tasks: Sequence[Task]
) -> EvalSummary:
    """Evaluate what the pool serves in the run directory `path`, going on where one was begun."""
    with _evaluation(config, path, tasks) as run:
        return await evaluate(config, pool, run, tasks)


def _evaluation(config: RunConfig, path: Path, tasks: Sequence[Task]) -> RunDirectory:
    if RunLayout(path).run_json.exists():
        return reopened(path, config, tasks)
    shutil.rmtree(path, ignore_errors=True)
    return new_run(path, config)


class Stand:
    """One pool for all the models of a seed: it starts with the first one, the rest are pushed."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._open = AsyncExitStack()
        self._shown = AsyncExitStack()
        self._pool: RolloutPool | None = None
        self._model: Path | None = None
        self._pushes = 0

    async def serve(self, model: Path) -> RolloutPool:
        """Return a pool that serves the weights in folder `model`."""
        config = self._config
        if self._pool is None:
            self._pool = await self._open.enter_async_context(open_pool(config, model))
            await self._pool.wait_healthy(config.rollouts.workers)
        elif self._model != model:
            await self._shown.aclose()
            self._pushes += 1
            await self._shown.enter_async_context(serving(config, self._pool, model, self._pushes))
        self._model = model
        return self._pool

    async def close(self) -> None:
        """End the pool, where it was started."""
        await self._shown.aclose()
        await self._open.aclose()
        self._pool = None


def seed_stages(study: Study, root: Path, stand: Stand, progress: Progress) -> list[Stage]:
    """Return every stage of one seed, whose folders lie below `root`: models, then evaluations."""
    models = [_model_stage(study, root, name, progress) for name in _in_order(study)]
    keys = tuple(stage.key for stage in models)
    arms = sorted(study.section.arms, key=lambda arm: _model_rank(study, arm))
    return models + [
        _evaluation_stage(study, root, stand, (arm, setting, temperature), keys)
        for arm in arms
        for setting in study.section.settings
        for temperature in study.section.temperatures
    ]


def evaluation_key(arm: str, setting: str, temperature: str) -> str:
    """Return the key of an evaluation's stage."""
    return f"evals/{arm}/{setting}/{temperature}"


def model_key(name: str) -> str:
    """Return the key of a model's stage."""
    return f"models/{name}"


def with_values(config: RunConfig, section: str, **values: object) -> RunConfig:
    """Return `config` with values of one section replaced; they are not checked."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def _in_order(study: Study) -> list[str]:
    """Return the models such that each comes after what it builds on; imitation first."""
    left, ordered = dict(study.section.models), list[str]()
    while left:
        ready = [
            name
            for name, model in left.items()
            if all(other in ordered for other in (model.parent, model.match) if other)
        ]
        ready.sort(key=lambda name: left[name].kind != "sft")
        ordered.append(ready[0])
        del left[ready[0]]
    return ordered


def _model_rank(study: Study, arm: str) -> int:
    """Evaluations of one model come in a row, so that it is pushed once."""
    return _in_order(study).index(study.section.arms[arm].model)


def _model_stage(study: Study, root: Path, name: str, progress: Progress) -> Stage:
    model, config = study.section.models[name], study.training(name)
    if model.parent:  # or its lessons would be those of its parent
        seed = stable_hash("study", config.run.seed, name) if model.kind == "sft" else None
        config = config if seed is None else with_values(config, "run", seed=seed)

    async def make(folder: Path, results: Results) -> JsonObject:
        parent = (
            root / model_key(model.parent) / WEIGHTS if model.parent else find_model(study.config)
        )
        if model.kind == "grpo":
            return await _reinforced(config, parent, folder, progress)
        if not model.match:
            return await _imitated(config, parent, folder)
        matched = results[model_key(model.match)]
        config_ = with_values(config, "teacher", episodes=int(str(matched["played_episodes"])))
        return await _imitated(config_, parent, folder, int(str(matched["trained_tokens"])))

    needs = tuple(model_key(other) for other in (model.parent, model.match) if other)
    inputs = {
        "kind": model.kind,
        "match": model.match,
        "recipe": fingerprint(config, *_USED[model.kind]),
    }
    slots = 1 if model.kind == "sft" else study.section.slots
    return Stage(model_key(name), needs, inputs, make, slots)


async def _imitated(config: RunConfig, parent: Path, folder: Path, tokens: int = 0) -> JsonObject:
    """Imitate in the run directory `folder`, going on with a killed attempt where there is one."""
    if not begun_for(folder, config, "sft"):
        shutil.rmtree(folder)
    made = await taught(config, parent, folder, tokens)
    table, metrics = made.lesson.table, made.metrics
    return {
        "played_episodes": made.lesson.played,
        "kept_episodes": table.num_rows,
        "trained_tokens": _trained_tokens(metrics),
        "optimizer_steps": len(metrics),
        "first_loss": metrics[0]["loss"],
        "last_loss": metrics[-1]["loss"],
    }


async def _reinforced(
    config: RunConfig, parent: Path, folder: Path, progress: Progress
) -> JsonObject:
    """Reinforce, from the newest checkpoint of a killed attempt where there is one."""
    config = with_values(config, "model", path=str(parent))
    config = with_values(config, "run", dir=str(folder), name="run")
    begun = begun_for(config.path, config, "grpo")
    if not begun:
        shutil.rmtree(config.path, ignore_errors=True)
    with open_run(config, progress, resume=begun) as run:
        async with open_job(config, run) as job:
            await reinforce(job, progress)
            await job.learner.export_model(folder / WEIGHTS)
    reader = RunReader(config.path)
    rows = [row.values for row in reader.metrics()]
    return {
        "played_episodes": len(reader.episodes()),
        "trained_tokens": _trained_tokens(rows),
        "optimizer_steps": int(sum(row.get("optimizer_steps", 0.0) for row in rows)),
        "first_answers": rows[0]["answer_mean"],
        "last_answers": rows[-1]["answer_mean"],
    }


def begun_for(path: Path, config: RunConfig, kind: str) -> bool:
    """Whether there is a killed attempt at `path` that ends in what `config` asks for."""
    layout = RunLayout(path)
    if not layout.run_json.exists():
        return False
    before = load_config(str(layout.config_toml))
    return fingerprint(before, *_USED[kind]) == fingerprint(config, *_USED[kind])


def _trained_tokens(rows: Sequence[dict[str, float]]) -> int:
    """Tokens that went through the model in training, prompts and observations included."""
    return int(sum(row["sequence_tokens"] for row in rows))


def _evaluation_stage(
    study: Study, root: Path, stand: Stand, cell: tuple[str, str, str], models: tuple[str, ...]
) -> Stage:
    arm = study.section.arms[cell[0]]
    config = study.playing(*cell)
    weights = root / model_key(arm.model) / WEIGHTS

    async def play(folder: Path, results: Results) -> JsonObject:
        del results
        at = with_values(config, "model", path=str(weights))
        pool = await stand.serve(weights)
        summary = await measured(at, pool, folder / "run", eval_tasks(at))
        return {"arm": cell[0], "setting": cell[1], "temperature": cell[2], **summary.to_json()}

    inputs = {"recipe": fingerprint(config, *_PLAYED, "eval")}
    key, slots = evaluation_key(*cell), study.section.slots
    return Stage(key, (model_key(arm.model),), inputs, play, slots, models)
