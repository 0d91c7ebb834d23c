"""The tasks of each kind of run, in the order in which groups are numbered."""

from collections.abc import Sequence
from typing import Protocol

from cluster.config.run_config import RunConfig
from cluster.scheduling.task_stream import TaskStream
from envs.errors import ConfigError
from envs.seeds import stable_hash
from envs.tasks import Environment, Task
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
            return collection_tasks(config, environment)
        case RolloutKind.EVAL:
            return eval_tasks(config, environment)


def training_tasks(config: RunConfig, environment: Environment) -> TaskStream:
    """Return the endless sequence of tasks that the policy is trained on."""
    return TaskStream(environment, "train", config.run.seed)


def collection_tasks(config: RunConfig, environment: Environment) -> TaskStream:
    """Return the tasks of demonstrations: of the training split, sampled with another seed than
    those of RL.
    """
    return TaskStream(environment, "train", stable_hash(config.run.seed, "teacher"))


def collection_size(config: RunConfig, environment: Environment) -> int:
    """Return how many tasks a collection has: `collect.tasks`, at most all of a finite set."""
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
