"""The built-in environment: unfamiliar tools that can only be known by trying them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from envs.config import CatalogConfig
from envs.errors import ConfigError
from envs.seeds import stable_hash
from envs.tasks import Score, Split, Task
from envs.tasksets.catalog.compositions import value_digits
from envs.tasksets.catalog.drawing import DrawnTools, TaskKind, draw_kind, draw_tools
from envs.tasksets.catalog.instances import Instance, tool_set_of
from envs.tasksets.catalog.operations import OPERATIONS, PROBE


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """Scorer: 1 when the answer is the expected text, surrounding space aside."""

    expected: str

    def score(self, answer: str) -> Score:
        """Return the reward, with `exact` as its only part."""
        exact = float(answer.strip() == self.expected)
        return Score(exact, {"exact": exact})


@dataclass(frozen=True, slots=True)
class DrawnTask:
    """A task in parts: its tools, its goals as the question states them, and the value."""

    kind: TaskKind
    tools: DrawnTools
    goals: tuple[str, ...]
    value: str

    @property
    def answer(self) -> str:
        """What the value becomes when each needed tool in turn is given what the last one made."""
        return answer_of(self.tools.needed, self.value)


class CatalogEnvironment:
    """Four tools a task, each with a hidden operation, a hidden quirk and a doc that may mislead.

    A question names one operation or several in order, and a value; for each operation one of the
    tools does it, so every task can be solved by feeding each result to the next tool. In `train`,
    half of the tasks use tools that recur, the other half a long tail whose behaviour is redrawn
    per task; in the other splits all tools are drawn anew, under names that `train` never uses, and
    operations or compositions may be new as well (`[env.catalog] novelty`).
    """

    def __init__(self, config: CatalogConfig | None = None) -> None:
        self._config = config or CatalogConfig()
        if self._config.marks > 0 and self._config.tools > len(OPERATIONS):
            raise ConfigError(
                f"expected at most {len(OPERATIONS)} tools with marks, found {self._config.tools}: "
                "two tools would have an answer each; give fewer tools, or marks = 0"
            )

    @property
    def name(self) -> str:
        return "catalog"

    def tasks(self, split: Split, seed: int, count: int | None) -> Sequence[Task]:
        """Draw `count` tasks; a longer draw starts with the shorter one.

        Raises ConfigError for an unknown split, and for a count of None: there is no end.
        """
        if split not in ("train", "validation", "heldout"):
            raise ConfigError(
                f"expected split train, validation or heldout, found {split!r}: name one of them"
            )
        if count is None:
            raise ConfigError("catalog draws tasks without end: say how many (a count of tasks)")
        return [draw_task(self._config, split, seed, index) for index in range(count)]


def draw_task(config: CatalogConfig, split: Split, seed: int, index: int) -> Task:
    """Draw task number `index` of `split`; what a level does not vary is drawn as without it."""
    drawn = draw_parts(config, split, seed, index)
    kind = drawn.kind
    suffix = "" if kind.depth == 1 and kind.novelty == "names" else f"-d{kind.depth}-{kind.novelty}"
    return Task(
        id=f"catalog-{split}-{seed}-{index}{suffix}",
        environment="catalog",
        split=split,
        question=" ".join([*drawn.goals, drawn.value]),
        tool_set=tool_set_of(drawn.tools.listed),
        scorer=ExactMatch(drawn.answer),
        tags=_tags(config, kind, drawn.tools),
    )


def draw_parts(config: CatalogConfig, split: Split, seed: int, index: int) -> DrawnTask:
    """Draw the parts of task number `index` of `split`."""
    kind = draw_kind(config, split, seed, index)
    rng = Random(stable_hash("catalog task", split, seed, index))
    tools = draw_tools(config, kind, rng)
    probe = draw_probe(config, Random(stable_hash("catalog probe", split, seed, index)))
    goals = goals_of(tools.needed, probe if kind.by_example else "")
    return DrawnTask(kind, tools, goals, draw_value(tools.needed, goals, rng))


def _tags(config: CatalogConfig, kind: TaskKind, drawn: DrawnTools) -> dict[str, str]:
    """Return the labels of a task: knobs that are off have none."""
    tags = {
        "quirk": _joined(tool.quirk.kind for tool in drawn.needed),
        "doc": _joined(tool.doc_kind for tool in drawn.needed),
        "depth": str(kind.depth),
        "novelty": "seen" if kind.split == "train" else kind.novelty,
        "goals": "examples" if kind.by_example else "names",
        "tools": str(config.tools),
    }
    if config.duplicates > 0:
        distinct = len({tool.operation for tool in drawn.listed})
        tags["duplicates"] = str(len(drawn.listed) - distinct)
    if config.marks > 0:
        tags["marks"] = "yes" if kind.marked else "no"
    return tags


def answer_of(needed: Sequence[Instance], value: str) -> str:
    """Return what `value` becomes when each tool in turn is given what the one before made."""
    for tool in needed:
        value = tool.apply(value)
    return value


def draw_probe(config: CatalogConfig, rng: Random) -> str:
    """Draw the input of a task's examples: distinct digits, so that an operation can be read off.

    With tools that count in other units, 1 to 3 in any order, or nobody could tell the unit.
    """
    digits = PROBE if config.quirks.get("unit", 0.0) > 0 else "0123456789"
    return "".join(rng.sample(digits, len(PROBE)))


def goals_of(needed: Sequence[Instance], probe: str) -> tuple[str, ...]:
    """Return the goals as a question states them: `reverse`, or by example `582>285`."""
    operations = [tool.operation for tool in needed]
    return tuple(f"{probe}>{op.apply(probe)}" if probe else op.name for op in operations)


def draw_value(needed: Sequence[Instance], goals: Sequence[str], rng: Random) -> str:
    """Draw distinct digits; never such that an example of the question is the answer."""
    shown = {text for goal in goals if ">" in goal for text in goal.split(">")}
    while True:
        value = "".join(rng.sample("0123456789", value_digits(len(needed))))
        if not shown & {value, answer_of(needed, value)}:
            return value


def _joined(kinds: Iterable[str]) -> str:
    """Return the kinds of the needed tools as one tag, each once."""
    several = sorted(set(kinds))
    return "+".join(several if len(several) == 1 else [kind for kind in several if kind != "none"])
