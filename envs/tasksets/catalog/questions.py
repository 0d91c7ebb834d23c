"""The question of a task: its goals, and the value to process."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from envs.seeds import stable_hash
from envs.tasks import Split
from envs.tasksets.catalog.compositions import value_digits
from envs.tasksets.catalog.config import CatalogConfig
from envs.tasksets.catalog.instances import Instance
from envs.tasksets.catalog.operations import PROBE
from envs.tasksets.catalog.sampling import SampledTools, TaskKind, sample_kind, sample_tools


@dataclass(frozen=True, slots=True)
class SampledTask:
    """The parts of a task: its tools, its goals as the question states them, and the value."""

    kind: TaskKind
    tools: SampledTools
    goals: tuple[str, ...]
    value: str

    @property
    def answer(self) -> str:
        """The value after each needed tool in turn; each receives the previous result."""
        return answer_of(self.tools.needed, self.value)


def sample_parts(config: CatalogConfig, split: Split, seed: int, index: int) -> SampledTask:
    """Sample the parts of task number `index` of `split`."""
    kind = sample_kind(config, split, seed, index)
    rng = Random(stable_hash("catalog task", split, seed, index))
    tools = sample_tools(config, kind, rng)
    probe = sample_probe(config, Random(stable_hash("catalog probe", split, seed, index)))
    goals = goals_of(tools.needed, probe if kind.by_example else "")
    return SampledTask(kind, tools, goals, sample_value(tools.needed, goals, rng))


def answer_of(needed: Sequence[Instance], value: str) -> str:
    """Return `value` after each tool in turn; each receives the previous result."""
    for tool in needed:
        value = tool.apply(value)
    return value


def sample_probe(config: CatalogConfig, rng: Random) -> str:
    """Sample the input of a task's examples: distinct digits, which make the operation readable.

    If tools may use other units, the digits are 1 to 3 in any order; otherwise the unit could not
    be recognised.
    """
    digits = PROBE if config.quirks.get("unit", 0.0) > 0 else "0123456789"
    return "".join(rng.sample(digits, len(PROBE)))


def goals_of(needed: Sequence[Instance], probe: str) -> tuple[str, ...]:
    """Return the goals as a question states them: `reverse`, or by example `582>285`."""
    operations = [tool.operation for tool in needed]
    return tuple(f"{probe}>{op.apply(probe)}" if probe else op.name for op in operations)


def sample_value(needed: Sequence[Instance], goals: Sequence[str], rng: Random) -> str:
    """Sample a value of distinct digits such that no example in the question shows the answer."""
    shown = {text for goal in goals if ">" in goal for text in goal.split(">")}
    while True:
        value = "".join(rng.sample("0123456789", value_digits(len(needed))))
        if not shown & {value, answer_of(needed, value)}:
            return value
