"""The built-in environment: unfamiliar tools that can only be known by trying them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from envs.catalog.instances import Instance, draw_instance, tool_set_of
from envs.catalog.names import names_of
from envs.catalog.operations import OPERATIONS
from envs.errors import ConfigError
from envs.seeds import stable_hash
from envs.tasks import Score, Split, Task

TOOLS_PER_TASK = 4
VALUE_DIGITS = 3
_RECURRENT_TOOLS = 160
_RECURRENT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """Scorer: 1 when the answer is the expected text, surrounding space aside."""

    expected: str

    def score(self, answer: str) -> Score:
        """Return the reward, with `exact` as its only part."""
        exact = float(answer.strip() == self.expected)
        return Score(exact, {"exact": exact})


class CatalogEnvironment:
    """Four tools a task, each with a hidden operation, a hidden quirk and a doc that may mislead.

    One of the tools does what the question names, so every task can be solved. In `train`, half of
    the tasks use tools that recur, the other half a long tail whose behaviour is redrawn per task;
    in the other splits all tools are drawn anew, under names that `train` never uses.
    """

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
        return [_draw_task(split, seed, index) for index in range(count)]


def _draw_task(split: Split, seed: int, index: int) -> Task:
    rng = Random(stable_hash("catalog task", split, seed, index))
    recurrent = split == "train" and rng.random() < _RECURRENT_SHARE
    instances = _draw_recurrent(rng) if recurrent else _draw_anew(split, rng)
    target = rng.choice(instances)
    value = "".join(rng.sample("0123456789", VALUE_DIGITS))
    return Task(
        id=f"catalog-{split}-{seed}-{index}",
        environment="catalog",
        split=split,
        question=f"{target.operation.name} {value}",
        tool_set=tool_set_of(instances),
        scorer=ExactMatch(target.operation.apply(value)),
        tags={"quirk": target.quirk.kind, "doc": target.doc_kind, "depth": "1"},
    )


def _draw_anew(split: Split, rng: Random) -> tuple[Instance, ...]:
    recurrent = {tool.name for tool in recurrent_tools()} if split == "train" else set()
    names: list[str] = []
    while len(names) < TOOLS_PER_TASK:
        name = rng.choice(names_of(split))
        if name not in recurrent and not _shares_syllable(name, names):
            names.append(name)
    operations = rng.sample(OPERATIONS, TOOLS_PER_TASK)
    return tuple(
        draw_instance(name, operation, rng)
        for name, operation in zip(names, operations, strict=True)
    )


def _draw_recurrent(rng: Random) -> tuple[Instance, ...]:
    chosen: list[Instance] = []
    while len(chosen) < TOOLS_PER_TASK:
        tool = rng.choice(recurrent_tools())
        clash = any(tool.operation == other.operation for other in chosen)
        if not clash and not _shares_syllable(tool.name, [other.name for other in chosen]):
            chosen.append(tool)
    return tuple(chosen)


@cache
def recurrent_tools() -> tuple[Instance, ...]:
    """Return the training tools that keep their behaviour; the same in every run."""
    rng = Random(stable_hash("catalog recurrent tools"))
    names = rng.sample(names_of("train"), _RECURRENT_TOOLS)
    return tuple(
        draw_instance(name, OPERATIONS[index % len(OPERATIONS)], rng)
        for index, name in enumerate(names)
    )


def _shares_syllable(name: str, names: Sequence[str]) -> bool:
    """Whether two names of one task would be easy to mix up."""
    return any({name[:2], name[2:]} & {other[:2], other[2:]} for other in names)
