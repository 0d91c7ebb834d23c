"""Finite task sets: which split a task belongs to, and a random sample of a split."""

from collections.abc import Sequence
from pathlib import Path

from envs.errors import ConfigError
from envs.seeds import stable_hash
from envs.tasks import Environment, Split, Task

VALIDATION_PERCENT = 10
"""Share of the tasks that are not held out, which forms the validation split."""


def split_of(name: str, task_id: str, heldout_percent: int) -> Split:
    """Return the split of a task in the task set `name`.

    It depends on the id and the percentage only, so a task never changes its split when others are
    added or removed.
    """
    if stable_hash(name, "heldout", task_id) % 100 < heldout_percent:
        return "heldout"
    if stable_hash(name, "validation", task_id) % 100 < VALIDATION_PERCENT:
        return "validation"
    return "train"


class TaskCollection(Environment):
    """An environment with a finite list of tasks, for example those of one file."""

    def __init__(self, name: str, path: Path, tasks: Sequence[Task]) -> None:
        self._name = name
        self.path = path
        self._tasks = tuple(tasks)

    @property
    def name(self) -> str:
        return self._name

    def all_tasks(self) -> Sequence[Task]:
        """Return every task of every split, in file order."""
        return self._tasks

    def tasks(self, split: Split, seed: int, count: int | None) -> Sequence[Task]:
        """Return `count` tasks of `split`, or all when None, in a random order given by `seed`.

        A shorter sample is the beginning of a longer one with the same seed. Raises ConfigError
        if the split has fewer than `count` tasks, or none.
        """
        pool = [task for task in self._tasks if task.split == split]
        if not pool:
            raise ConfigError(
                f"expected tasks in the {split} split of {self.path}, found none among "
                f"{len(self._tasks)}: choose another split, add tasks, or change "
                "env.heldout_percent"
            )
        if count is not None and count > len(pool):
            raise ConfigError(
                f"expected {count} tasks in the {split} split of {self.path}, found {len(pool)}: "
                "request fewer, or set env.path to a larger file"
            )
        sampled = sorted(pool, key=lambda task: stable_hash(self._name, "draw", seed, task.id))
        return tuple(sampled[:count])
