"""Sampling of a task: first its kind, then its tools, then which of them it needs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from random import Random
from string import ascii_uppercase

from envs.seeds import stable_hash
from envs.tasks import Split
from envs.tasksets.catalog.compositions import admitted
from envs.tasksets.catalog.config import CatalogConfig, CatalogNovelty
from envs.tasksets.catalog.instances import (
    DEFAULT_SHARES,
    Instance,
    Shares,
    sample_instance,
    shares_of,
)
from envs.tasksets.catalog.names import names_of
from envs.tasksets.catalog.operations import OPERATIONS, RESERVED_OPERATIONS, Operation

_RECURRENT_TOOLS = 160


@dataclass(frozen=True, slots=True)
class TaskKind:
    """Properties of a task that are sampled before its tools."""

    split: Split
    depth: int
    novelty: CatalogNovelty
    """In `train` it is always `names`."""
    by_example: bool
    marked: bool

    @property
    def known(self) -> tuple[Operation, ...]:
        """The operations that its tools may have and its docs may name."""
        return OPERATIONS + RESERVED_OPERATIONS if self.novelty == "operations" else OPERATIONS


@dataclass(frozen=True, slots=True)
class SampledTools:
    """The tools of a task in listed order, and those it needs, in the order of its goals."""

    listed: tuple[Instance, ...]
    needed: tuple[Instance, ...]


def sample_kind(config: CatalogConfig, split: Split, seed: int, index: int) -> TaskKind:
    """Sample the kind of task number `index`; it does not depend on the tools."""
    rng = Random(stable_hash("catalog kind", split, seed, index))
    novelty = "names" if split == "train" else rng.choice(config.novelty)
    depths = {int(depth): weight for depth, weight in sorted(config.depths.items())}
    if novelty == "compositions":
        depths.pop(1, None)
    depth = rng.choices(list(depths), list(depths.values()))[0]
    by_example = rng.random() < config.examples or novelty == "operations"
    return TaskKind(split, depth, novelty, by_example, marked=rng.random() < config.marks)


def sample_tools(config: CatalogConfig, kind: TaskKind, rng: Random) -> SampledTools:
    """Sample tools until they allow a question of that kind, then choose the needed ones."""
    shares = shares_of(config)
    recurrent = kind.split == "train" and rng.random() < config.recurrent
    while True:
        tools = (
            _sample_recurrent(config.tools, shares, rng)
            if recurrent
            else _sample_new(config.tools, kind, shares, rng)
        )
        steps = _admitted_steps(tools, kind)
        if steps:
            break
    sampled = SampledTools(tools, rng.choice(steps))
    if config.duplicates > 0 and not recurrent:
        sampled = _with_duplicates(sampled, config, kind, rng)
    return _with_marks(sampled, rng) if kind.marked else sampled


def _admitted_steps(instances: tuple[Instance, ...], kind: TaskKind) -> list[tuple[Instance, ...]]:
    """Return the sequences of tools that a question of this kind may need."""
    return [
        tools
        for tools in permutations(instances, kind.depth)
        if admitted(tuple(tool.operation for tool in tools), kind.novelty)
    ]


def _sample_new(count: int, kind: TaskKind, shares: Shares, rng: Random) -> tuple[Instance, ...]:
    recurrent = {tool.name for tool in recurrent_tools()} if kind.split == "train" else set()
    names: list[str] = []
    while len(names) < count:
        name = rng.choice(names_of(kind.split))
        if name not in recurrent and not _shares_syllable(name, names):
            names.append(name)
    operations = rng.sample(kind.known, min(count, len(kind.known)))
    operations += rng.choices(kind.known, k=count - len(operations))
    return tuple(
        sample_instance(name, operation, rng, kind.known, shares)
        for name, operation in zip(names, operations, strict=True)
    )


def _sample_recurrent(count: int, shares: Shares, rng: Random) -> tuple[Instance, ...]:
    chosen: list[Instance] = []
    while len(chosen) < count:
        tool = rng.choice(recurrent_tools(shares))
        clash = len(chosen) < len(OPERATIONS) and any(
            tool.operation == other.operation for other in chosen
        )
        if not clash and not _shares_syllable(tool.name, [other.name for other in chosen]):
            chosen.append(tool)
    return tuple(chosen)


@cache
def recurrent_tools(shares: Shares = DEFAULT_SHARES) -> tuple[Instance, ...]:
    """Return the training tools with fixed behaviour; they are the same in every run."""
    rng = Random(stable_hash("catalog recurrent tools"))
    names = rng.sample(names_of("train"), _RECURRENT_TOOLS)
    return tuple(
        sample_instance(name, OPERATIONS[index % len(OPERATIONS)], rng, shares=shares)
        for index, name in enumerate(names)
    )


def _with_duplicates(
    sampled: SampledTools, config: CatalogConfig, kind: TaskKind, rng: Random
) -> SampledTools:
    """Replace some tools that are not needed by duplicates of another tool's operation."""
    listed: list[Instance] = []
    for tool in sampled.listed:
        if tool not in sampled.needed and rng.random() < config.duplicates:
            operation = rng.choice([*sampled.needed, *listed]).operation
            tool = sample_instance(tool.name, operation, rng, kind.known, shares_of(config))
        listed.append(tool)
    return SampledTools(tuple(listed), sampled.needed)


def _with_marks(sampled: SampledTools, rng: Random) -> SampledTools:
    """Give every tool of the task a different letter."""
    letters = rng.sample(ascii_uppercase, len(sampled.listed))
    marked = {
        tool.name: replace(tool, mark=letter)
        for tool, letter in zip(sampled.listed, letters, strict=True)
    }
    return SampledTools(
        tuple(marked[tool.name] for tool in sampled.listed),
        tuple(marked[tool.name] for tool in sampled.needed),
    )


def _shares_syllable(name: str, names: Sequence[str]) -> bool:
    """Whether `name` shares a syllable with one of `names` and would be confused with it."""
    return any({name[:2], name[2:]} & {other[:2], other[2:]} for other in names)
