"""The endless, repeatable sequence of training tasks: group i always has the same task."""

from collections.abc import Sequence

from envs.errors import ConfigError
from envs.seeds import stable_hash
from envs.tasks import Environment, Split, Task

CHUNK = 256
"""Tasks requested at once from an endless environment."""


class TaskStream:
    """Task number i, for any i; every pass over a finite set has its own order."""

    def __init__(self, environment: Environment, split: Split, seed: int) -> None:
        self._environment = environment
        self._split: Split = split
        self._seed = seed
        self._chunks: dict[int, Sequence[Task]] = {}
        self._size = len(self._chunk(0))
        if self._size == 0:
            raise ConfigError(f"environment {environment.name} has no tasks in split {split!r}")

    def __getitem__(self, index: int) -> Task:
        chunk, offset = divmod(index, self._size)
        return self._chunk(chunk)[offset]

    def _chunk(self, number: int) -> Sequence[Task]:
        if number not in self._chunks:
            seed = stable_hash(self._seed, "tasks", self._split, number)
            tasks = list(self._environment.tasks(self._split, seed, self._count()))
            tasks.sort(key=lambda task: stable_hash(seed, task.id))
            self._chunks = {number: tasks, **dict(list(self._chunks.items())[:3])}
        return self._chunks[number]

    def _count(self) -> int | None:
        return CHUNK if self._environment.endless else None
