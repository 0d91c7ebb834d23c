"""The tasks of each kind of run, in the order in which groups are numbered."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cluster.config.run_config import RunConfig
from cluster.scheduling.task_stream import TaskStream
from envs.errors import ConfigError
from envs.seeds import stable_hash
from envs.tasks import Environment, Task
from rollout.engines.written_turns import Turns, read_turns
from rollout.episode import RolloutKind
from rollout.evaluation.report import check_tags


class TaskSource(Protocol):
    """Task number i, the same in every process of a run."""

    def __getitem__(self, index: int, /) -> Task: ...


def task_source(kind: RolloutKind, config: RunConfig, environment: Environment) -> TaskSource:
    """Return the tasks of one kind of rollout. Raises ConfigError where there are none."""
    match kind:
        case RolloutKind.TRAIN:
            return training_tasks(config, environment)
        case RolloutKind.COLLECT:
            return demonstrated_tasks(config, environment)
        case RolloutKind.EVAL:
            return eval_tasks(config, environment)


def training_tasks(config: RunConfig, environment: Environment) -> TaskStream:
    """Return the endless sequence of tasks that the policy is trained on."""
    return TaskStream(environment, "train", config.run.seed)


def collection_tasks(config: RunConfig, environment: Environment) -> TaskStream:
    """Return the tasks of a teacher's demonstrations: of the training split, sampled with another
    seed than those of RL.
    """
    return TaskStream(environment, "train", stable_hash(config.run.seed, "teacher"))


def demonstrated_tasks(config: RunConfig, environment: Environment) -> TaskSource:
    """Return the tasks that `trialrun collect` runs. Raises ConfigError where there are none."""
    if config.collect.source == "turns":
        return written_tasks(config, environment)
    return collection_tasks(config, environment)


def written_tasks(config: RunConfig, environment: Environment) -> list[Task]:
    """Return the training tasks whose turns somebody wrote, in the order of the file.

    Raises ConfigError for a file that has none, and where the environment generates its tasks.
    """
    turns = written_turns(config, environment)
    by_id = {task.id: task for task in environment.all_tasks()}
    found = [by_id[name] for name in turns]
    training = [task for task in found if task.split == "train"]
    if not training:
        raise ConfigError(
            f"collect.turns (--turns) {config.collect.turns}: expected turns of training tasks, "
            f"found those of {found[0].id}, which is in the {found[0].split} split"
        )
    return training


def unused_turns(config: RunConfig, environment: Environment) -> list[str]:
    """Return the tasks whose turns somebody wrote, and which are not for training."""
    used = {task.id for task in written_tasks(config, environment)}
    return [name for name in written_turns(config, environment) if name not in used]


def written_turns(config: RunConfig, environment: Environment) -> dict[str, Turns]:
    """Return the turns that somebody wrote, by the id of their task. Raises ConfigError."""
    if environment.endless:
        raise ConfigError(
            "collect.source = 'turns' needs tasks that have names, "
            f"found environment {environment.name!r}, which generates them without end"
        )
    path = Path(config.collect.turns)
    return read_turns("collect.turns (--turns)", path, environment.all_tasks())


def collection_size(config: RunConfig, environment: Environment) -> int:
    """Return how many tasks a collection has: `collect.tasks`, at most all of a finite set."""
    if config.collect.source == "turns":
        return min(config.collect.tasks, len(written_tasks(config, environment)))
    if environment.endless:
        return config.collect.tasks
    return min(config.collect.tasks, len(environment.tasks("train", config.run.seed, None)))


def eval_tasks(config: RunConfig, environment: Environment) -> Sequence[Task]:
    """Return the tasks that `[eval]` names. Raises ConfigError where the environment has no such
    set, or where none of them carries a tag of `eval.by`.
    """
    tasks = _sampled(config, environment)
    check_tags([task.tags for task in tasks], config.eval.by)
    return tasks


def _sampled(config: RunConfig, environment: Environment) -> Sequence[Task]:
    section = config.eval
    if section.split == "all":
        if environment.endless:
            raise ConfigError(
                "eval.split = 'all' needs a file of tasks; "
                f"{environment.name} generates its tasks: name a split"
            )
        tasks = environment.all_tasks()
        return tasks[: section.tasks] if section.tasks else tasks
    seed = stable_hash(config.run.seed, "eval", section.seed)
    return environment.tasks(section.split, seed, section.tasks or None)
