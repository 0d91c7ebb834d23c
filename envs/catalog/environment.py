"""The built-in environment: unfamiliar tools that can only be known by trying them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from random import Random

from envs.catalog.compositions import admitted, apply_all, value_digits
from envs.catalog.instances import Instance, draw_instance, tool_set_of
from envs.catalog.names import names_of
from envs.catalog.operations import OPERATIONS, PROBE, RESERVED_OPERATIONS, Operation
from envs.config import CatalogConfig, CatalogNovelty
from envs.errors import ConfigError
from envs.seeds import stable_hash
from envs.tasks import Score, Split, Task

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

    A question names one operation or several in order, and a value; for each operation one of the
    tools does it, so every task can be solved by feeding each result to the next tool. In `train`,
    half of the tasks use tools that recur, the other half a long tail whose behaviour is redrawn
    per task; in the other splits all tools are drawn anew, under names that `train` never uses, and
    operations or compositions may be new as well (`[env.catalog] novelty`).
    """

    def __init__(self, config: CatalogConfig | None = None) -> None:
        self._config = config or CatalogConfig()

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
    kind = draw_kind(config, split, seed, index)
    rng = Random(stable_hash("catalog task", split, seed, index))
    instances, chosen = _draw_tools(config.tools, split, kind, rng)
    operations = tuple(tool.operation for tool in chosen)
    value = _draw_value(operations, kind, rng)
    suffix = "" if kind.depth == 1 and kind.novelty == "names" else f"-d{kind.depth}-{kind.novelty}"
    return Task(
        id=f"catalog-{split}-{seed}-{index}{suffix}",
        environment="catalog",
        split=split,
        question=" ".join([*goals_of(operations, kind.by_example), value]),
        tool_set=tool_set_of(instances),
        scorer=ExactMatch(apply_all(operations, value)),
        tags={
            "quirk": _joined(tool.quirk.kind for tool in chosen),
            "doc": _joined(tool.doc_kind for tool in chosen),
            "depth": str(kind.depth),
            "novelty": "seen" if split == "train" else kind.novelty,
            "goals": "examples" if kind.by_example else "names",
            "tools": str(config.tools),
        },
    )


@dataclass(frozen=True, slots=True)
class TaskKind:
    """What is drawn of a task before its tools."""

    depth: int
    novelty: CatalogNovelty
    by_example: bool


def draw_kind(config: CatalogConfig, split: Split, seed: int, index: int) -> TaskKind:
    """Draw depth, novelty and the wording of the goals; `train` has the novelty of `names`."""
    rng = Random(stable_hash("catalog kind", split, seed, index))
    novelty = "names" if split == "train" else rng.choice(config.novelty)
    depths = {int(depth): weight for depth, weight in sorted(config.depths.items())}
    if novelty == "compositions":
        depths.pop(1, None)
    depth = rng.choices(list(depths), list(depths.values()))[0]
    by_example = rng.random() < config.examples or novelty == "operations"
    return TaskKind(depth, novelty, by_example)


def goals_of(operations: Sequence[Operation], by_example: bool) -> list[str]:
    """Return the goals as a question states them: `reverse`, or by example `123>321`."""
    return [f"{PROBE}>{op.apply(PROBE)}" if by_example else op.name for op in operations]


def _draw_tools(
    count: int, split: Split, kind: TaskKind, rng: Random
) -> tuple[tuple[Instance, ...], tuple[Instance, ...]]:
    """Draw the tools of a task, and those of them that it needs, in order."""
    recurrent = split == "train" and rng.random() < _RECURRENT_SHARE
    while True:
        tools = (
            _draw_recurrent(count, rng)
            if recurrent
            else _draw_anew(split, kind.novelty, count, rng)
        )
        steps = _admitted_steps(tools, kind)
        if steps:
            return tools, rng.choice(steps)


def _admitted_steps(instances: tuple[Instance, ...], kind: TaskKind) -> list[tuple[Instance, ...]]:
    """Return the sequences of tools that a question of this kind may need."""
    return [
        tools
        for tools in permutations(instances, kind.depth)
        if admitted(tuple(tool.operation for tool in tools), kind.novelty)
    ]


def _draw_value(operations: tuple[Operation, ...], kind: TaskKind, rng: Random) -> str:
    """Draw distinct digits; never such that an example of the question is the answer."""
    while True:
        value = "".join(rng.sample("0123456789", value_digits(kind.depth)))
        examples = {PROBE, *(op.apply(PROBE) for op in operations)} if kind.by_example else set()
        if not examples & {value, apply_all(operations, value)}:
            return value


def _joined(kinds: Iterable[str]) -> str:
    """Return the kinds of the needed tools as one tag, each once."""
    several = sorted(set(kinds))
    return "+".join(several if len(several) == 1 else [kind for kind in several if kind != "none"])


def _draw_anew(
    split: Split, novelty: CatalogNovelty, count: int, rng: Random
) -> tuple[Instance, ...]:
    recurrent = {tool.name for tool in recurrent_tools()} if split == "train" else set()
    names: list[str] = []
    while len(names) < count:
        name = rng.choice(names_of(split))
        if name not in recurrent and not _shares_syllable(name, names):
            names.append(name)
    known = OPERATIONS + RESERVED_OPERATIONS if novelty == "operations" else OPERATIONS
    operations = rng.sample(known, min(count, len(known)))
    operations += rng.choices(known, k=count - len(operations))
    return tuple(
        draw_instance(name, operation, rng, known)
        for name, operation in zip(names, operations, strict=True)
    )


def _draw_recurrent(count: int, rng: Random) -> tuple[Instance, ...]:
    chosen: list[Instance] = []
    while len(chosen) < count:
        tool = rng.choice(recurrent_tools())
        clash = len(chosen) < len(OPERATIONS) and any(
            tool.operation == other.operation for other in chosen
        )
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
