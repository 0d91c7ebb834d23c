"""Tasks, how their answers are scored, and the Protocol of an environment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from envs.tools import ToolSet

Split = Literal["train", "validation", "heldout"]
"""`train` is learnt from, `validation` is tuned on, `heldout` is only ever reported on."""


@dataclass(frozen=True, slots=True)
class Score:
    """Reward for an answer, in [0, 1], with the named parts it is made of."""

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)


class Scorer(Protocol):
    """Knows when an answer is right; picklable; stays with the worker, never in a sandbox."""

    def score(self, answer: str) -> Score: ...


@dataclass(frozen=True, slots=True)
class Task:
    """A question, its tools, and the scorer of its answer.

    `tags` are difficulty labels for tables (for example `{"depth": "1", "quirk": "key"}`).
    """

    id: str
    environment: str
    split: Split
    question: str
    tool_set: ToolSet
    scorer: Scorer
    tags: Mapping[str, str] = field(default_factory=dict)


class Environment(Protocol):
    """A source of tasks; drawing the same (split, seed, count) twice gives equal tasks."""

    @property
    def name(self) -> str: ...

    def tasks(self, split: Split, seed: int, count: int | None) -> Sequence[Task]:
        """Return `count` tasks of `split`, or all there are when None.

        Raises ConfigError where the split does not exist or cannot give that many.
        """
        ...


@runtime_checkable
class TaskCollection(Protocol):
    """An environment that has an end, such as a file of tasks."""

    def all_tasks(self) -> Sequence[Task]:
        """Return every task, whatever its split."""
        ...
