"""Tasks, how their answers are scored, and the Protocol of an environment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from envs.errors import ConfigError
from envs.messages import Reply
from envs.tools import ToolSet

Split = Literal["train", "validation", "heldout"]
"""`train` is for training, `validation` for tuning, `heldout` for reported results only."""
SPLITS: tuple[Split, ...] = get_args(Split)
Mode = Literal["direct", "trial", "free"]
"""How an episode treats its tools: `direct` has no trial phase, `trial` tries the tools first,
`free` lets the policy choose when it tries.
"""


@dataclass(frozen=True, slots=True)
class Score:
    """Reward for an answer, in [0, 1], with the named parts it is made of."""

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)


class Scorer(Protocol):
    """Scores answers; picklable; stays with the worker and never enters a sandbox."""

    def score(self, answer: str) -> Score: ...


@dataclass(frozen=True, slots=True)
class Task:
    """A question, its tools, and the scorer of its answer.

    `tags` are labels to group results by, such as `{"depth": "1", "quirk": "key"}`.
    """

    id: str
    environment: str
    split: Split
    question: str
    tool_set: ToolSet
    scorer: Scorer
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Teacher:
    """A scripted teacher, which generates demonstrations for SFT."""

    reply: Reply
    """The text of its next turn."""
    trial_calls: Callable[[int, int], int]
    """From an episode's seed and the full budget to the trial calls that the episode may make."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Highest chance of success without trying the tools first, and its standard error."""

    success: float
    standard_error: float


EstimateCeiling = Callable[[int, int], Ceiling]
"""From the execution calls of an episode and a number of tasks to the ceiling; picklable, since the
search takes minutes and runs in a process of its own.
"""


class Environment(Protocol):
    """A source of tasks. The same (split, seed, count) gives equal tasks every time.

    Inherit from it: a new task set then needs `name` and `tasks` only. The other members describe
    what it can do beyond that; their defaults say "finite, no teacher, no known ceiling".
    """

    @property
    def name(self) -> str: ...

    @property
    def endless(self) -> bool:
        """Whether it generates as many tasks as a caller requests."""
        return False

    @property
    def ceiling(self) -> EstimateCeiling | None:
        """How to estimate the best score without trying the tools first; None where unknown."""
        return None

    def tasks(self, split: Split, seed: int, count: int | None) -> Sequence[Task]:
        """Return `count` tasks of `split`; all of them when `count` is None.

        Raises ConfigError where the split does not exist or has too few tasks.
        """
        ...

    def all_tasks(self) -> Sequence[Task]:
        """Return every task, split by split; override it where a split may have no tasks.

        Raises ConfigError where the task set is endless.
        """
        if self.endless:
            raise ConfigError(
                f"environment {self.name!r} generates tasks without end: "
                "name a split and a number of tasks"
            )
        return [task for split in SPLITS for task in self.tasks(split, 0, None)]

    def teacher(self, mode: Mode) -> Teacher:
        """Return the scripted teacher for episodes of `mode`. Raises ConfigError without one."""
        del mode
        raise ConfigError(
            f"environment {self.name!r} has no scripted teacher: "
            "let an endpoint teach (trialrun collect --source endpoint), "
            "or give episodes with --from RUN_DIRECTORY"
        )
