"""Tasks, how their answers are scored, and the Protocol of an environment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args, runtime_checkable

from envs.errors import ConfigError
from envs.evidence import Evidence
from envs.messages import Reply
from envs.tools import ToolService, ToolSet

Split = Literal["train", "validation", "heldout"]
"""`train` is for training, `validation` for tuning; use `heldout` only for reported results."""
SPLITS: tuple[Split, ...] = get_args(Split)
Mode = Literal["direct", "trial", "free"]
"""How an episode treats its tools: `direct` has no trial phase, `trial` tries the tools first,
`free` lets the policy choose when it tries.
"""


@dataclass(frozen=True, slots=True)
class Score:
    """Reward for an episode, its named components, and what the scorer says about it.

    Any finite reward is possible. An episode counts as correct above 0.5.
    """

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    """By name of a scorer, for example a judge's reason. The policy never sees them."""


class Scorer(Protocol):
    """Scores answers. It is picklable, stays in the worker and never enters a session of tools."""

    def score(self, answer: str) -> Score: ...


@runtime_checkable
class EpisodeScorer(Protocol):
    """Scores what happened in an episode. It is picklable and never enters a session of tools."""

    @property
    def reads_state(self) -> bool:
        """Whether `Evidence.states` is needed."""
        ...

    async def score_episode(self, evidence: Evidence) -> Score:
        """Return the score of an episode that has ended with an answer.

        Raises InfraError or DeadlineError where there is none: the episode then has no reward.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a user and the policy have said to each other, and how to ask a simulated user."""

    question: str
    answers: tuple[str, ...]
    said: tuple[str, ...]
    """The user's messages after the question, one before each further answer."""
    tools: ToolService
    seed: int
    episode: str


class User(Protocol):
    """Who speaks after the question. It is picklable, and the policy sees only what it says."""

    async def say(self, conversation: Conversation) -> str | None:
        """Return the next message, None at the end. Raises InfraError or DeadlineError."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """A question, its tools, and the scorer of its answer.

    `tags` are labels by which results can be grouped, for example `{"depth": "1", "quirk": "key"}`.
    """

    id: str
    environment: str
    split: Split
    question: str
    tool_set: ToolSet
    scorer: Scorer | EpisodeScorer
    tags: Mapping[str, str] = field(default_factory=dict)
    user: User | None = None
    """Who goes on after each answer; None if the first answer is the last one."""


async def score_episode(scorer: Scorer | EpisodeScorer, evidence: Evidence) -> Score:
    """Return the score of an episode. Raises InfraError, DeadlineError."""
    if isinstance(scorer, EpisodeScorer):
        return await scorer.score_episode(evidence)
    return scorer.score(evidence.answer)


def without_state(evidence: Evidence) -> Score:
    """Return the score of a scorer that needs a state which cannot be read."""
    return Score(0.0, notes={"state": evidence.unreadable})


def reads_state(scorer: Scorer | EpisodeScorer) -> bool:
    """Whether `scorer` needs the state of the tools."""
    return isinstance(scorer, EpisodeScorer) and scorer.reads_state


@dataclass(frozen=True, slots=True)
class Teacher:
    """A scripted teacher, which generates demonstrations for SFT (supervised fine-tuning)."""

    reply: Reply
    """Returns the text of the next turn, from the messages so far and the episode's seed."""
    trial_calls: Callable[[int, int], int]
    """Returns the number of trial calls an episode may make, from its seed and the full budget."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Highest success rate without trying the tools first, in [0, 1], and its standard error.

    The environment's documentation says for which policies it holds.
    """

    success: float
    standard_error: float


EstimateCeiling = Callable[[int, int], Ceiling]
"""Returns the ceiling, from the execution calls per episode and the number of tasks to sample. It
is picklable, because the search takes minutes and runs in a separate process.
"""


class Environment(Protocol):
    """A source of tasks. The same (split, seed, count) gives equal tasks every time.

    Inherit from it: a new task set then needs `name` and `tasks` only. The other members describe
    optional abilities; by default an environment is finite, has no teacher and no known ceiling.
    """

    @property
    def name(self) -> str: ...

    @property
    def endless(self) -> bool:
        """Whether it generates as many tasks as a caller requests."""
        return False

    @property
    def ceiling(self) -> EstimateCeiling | None:
        """Function that estimates the best score without trials; None if unknown."""
        return None

    def tasks(self, split: Split, seed: int, count: int | None) -> Sequence[Task]:
        """Return `count` tasks of `split`; all of them when `count` is None.

        Raises ConfigError if the split does not exist or has too few tasks.
        """
        ...

    def all_tasks(self) -> Sequence[Task]:
        """Return every task, split by split; override it if a split may have no tasks.

        Raises ConfigError if the task set is endless.
        """
        if self.endless:
            raise ConfigError(
                f"environment {self.name!r} generates tasks without end: "
                "name a split and a number of tasks"
            )
        return [task for split in SPLITS for task in self.tasks(split, 0, None)]

    def teacher(self, mode: Mode) -> Teacher:
        """Return the scripted teacher for episodes of `mode`.

        Raises ConfigError if the environment has none.
        """
        del mode
        raise ConfigError(
            f"environment {self.name!r} has no scripted teacher: "
            "generate demonstrations with an endpoint (trialrun collect --source endpoint), "
            "or use the episodes of a run with --from RUN_DIRECTORY"
        )
