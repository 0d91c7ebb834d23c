"""The built-in environment: unfamiliar tools that a policy can learn only by trying them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from envs.answers import one_spelling
from envs.errors import ConfigError
from envs.tasks import Environment, EstimateCeiling, Mode, Score, Split, Task, Teacher
from envs.tasksets.catalog.ceiling import estimate_ceiling
from envs.tasksets.catalog.config import CatalogConfig
from envs.tasksets.catalog.instances import tool_set_of
from envs.tasksets.catalog.operations import OPERATIONS
from envs.tasksets.catalog.questions import sample_parts
from envs.tasksets.catalog.sampling import SampledTools, TaskKind
from envs.tasksets.catalog.teacher import direct_reply, sample_trial_calls, trial_reply


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """Scores 1 if the answer equals the expected text (outer white space is ignored), else 0."""

    expected: str

    def score(self, answer: str) -> Score:
        """Return the reward, with `exact` as its only component."""
        exact = float(one_spelling(answer).strip() == one_spelling(self.expected))
        return Score(exact, {"exact": exact})


class CatalogEnvironment(Environment):
    """Endless tasks whose tools have a hidden operation, a hidden quirk and a doc that may mislead.

    A question names one or several operations, in order, and a value. For each operation one of
    the tools performs it, so every task can be solved by passing each result to the next tool. In
    `train`, half of the tasks use tools that recur; the other half use a long tail of tools whose
    behaviour is sampled again for each task. In the other splits all tools are newly sampled, with
    names that `train` never uses, and operations or compositions may be new as well
    (`[env.catalog] novelty`).
    """

    def __init__(self, config: CatalogConfig | None = None) -> None:
        self._config = config or CatalogConfig()
        if self._config.marks > 0 and self._config.tools > len(OPERATIONS):
            raise ConfigError(
                f"expected at most {len(OPERATIONS)} tools with marks, found {self._config.tools}: "
                "two tools would share an operation and a task would have two correct answers; "
                "use fewer tools, or marks = 0"
            )

    @property
    def name(self) -> str:
        return "catalog"

    @property
    def endless(self) -> bool:
        return True

    @property
    def ceiling(self) -> EstimateCeiling:
        return partial(estimate_ceiling, self._config)

    def teacher(self, mode: Mode) -> Teacher:
        """Return the teacher: `direct` calls what the docs suggest; the others try first."""
        return Teacher(direct_reply if mode == "direct" else trial_reply, sample_trial_calls)

    def tasks(self, split: Split, seed: int, count: int | None) -> Sequence[Task]:
        """Return `count` sampled tasks; a longer sample starts with the shorter one.

        Raises ConfigError for an unknown split, and for a count of None (tasks are endless).
        """
        if split not in ("train", "validation", "heldout"):
            raise ConfigError(
                f"expected split train, validation or heldout, found {split!r}: name one of them"
            )
        if count is None:
            raise ConfigError("the catalog generates tasks without end: give a number of tasks")
        return [sample_task(self._config, split, seed, index) for index in range(count)]


def sample_task(config: CatalogConfig, split: Split, seed: int, index: int) -> Task:
    """Sample task number `index` of `split`.

    The random choices do not depend on settings that are off, so a new setting keeps old tasks.
    """
    sampled = sample_parts(config, split, seed, index)
    kind = sampled.kind
    suffix = "" if kind.depth == 1 and kind.novelty == "names" else f"-d{kind.depth}-{kind.novelty}"
    return Task(
        id=f"catalog-{split}-{seed}-{index}{suffix}",
        environment="catalog",
        split=split,
        question=" ".join([*sampled.goals, sampled.value]),
        tool_set=tool_set_of(sampled.tools.listed),
        scorer=ExactMatch(sampled.answer),
        tags=_tags(config, kind, sampled.tools),
    )


def _tags(config: CatalogConfig, kind: TaskKind, sampled: SampledTools) -> dict[str, str]:
    """Return the labels of a task; settings that are off have no label."""
    tags = {
        "quirk": _joined(tool.quirk.kind for tool in sampled.needed),
        "doc": _joined(tool.doc_kind for tool in sampled.needed),
        "depth": str(kind.depth),
        "novelty": "seen" if kind.split == "train" else kind.novelty,
        "goals": "examples" if kind.by_example else "names",
        "tools": str(config.tools),
    }
    if config.duplicates > 0:
        distinct = len({tool.operation for tool in sampled.listed})
        tags["duplicates"] = str(len(sampled.listed) - distinct)
    if config.marks > 0:
        tags["marks"] = "yes" if kind.marked else "no"
    return tags


def _joined(kinds: Iterable[str]) -> str:
    """Return the distinct kinds of the needed tools as one tag."""
    several = sorted(set(kinds))
    return "+".join(several if len(several) == 1 else [kind for kind in several if kind != "none"])
