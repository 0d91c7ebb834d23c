"""Perturbs any tool set by rules: other names, documentation and schemas, and tool faults.

The levels are RoTBench's (Ye et al., "RoTBench: A Multi-Level Benchmark for Evaluating the
Robustness of Large Language Models in Tool Learning", EMNLP 2024, arXiv 2401.08326): `slight`
misspells names (insertion, omission, substitution), `medium` reverses them or makes them nonsense,
`heavy` exchanges the names of tools, and of the parameters of a tool, and adds required parameters;
`union` does all of this. As in RoTBench, some names stay unchanged. Our own additions, per level in
`envs/perturbation/levels.py`: paraphrased and shortened documentation, another order, other
parameter types, distractors, tool faults and latency. Only the top level of a tool's parameters
changes. Names inside the documentation stay unchanged, as in outdated documentation.
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from envs.config import PerturbationLevel
from envs.errors import ConfigError
from envs.perturbation.distractors import distractor
from envs.perturbation.docs import noisy_text
from envs.perturbation.levels import LEVELS, Recipe
from envs.perturbation.names import new_names
from envs.perturbation.schema import perturbed_parameters
from envs.seeds import stable_hash
from envs.tasks import Environment, Mode, Split, Task, Teacher
from envs.tools import Adaptation, CallRule, ToolSet, ToolSpec


def perturb(tool_set: ToolSet, level: PerturbationLevel, seed: int) -> ToolSet:
    """Return `tool_set` perturbed, the same for the same seed; `clean` returns the set itself.

    Every call of a base tool remains possible, except with an undocumented argument whose name a
    new parameter happens to have.
    """
    if level == "clean":
        return tool_set
    recipe = LEVELS[level]
    rng = Random(stable_hash("perturbation", level, seed))
    old = [tool.name for tool in tool_set.tools]
    names = new_names(old, recipe.names, rng, exchange=recipe.exchange)
    pairs = [
        _perturbed_tool(tool, name, recipe, rng)
        for tool, name in zip(tool_set.tools, names, strict=True)
    ]
    taken = {*names, *old}
    for _ in range(recipe.distractors):
        spec, rule = distractor(tool_set, taken, rng)
        taken.add(spec.name)
        pairs.append((spec, rule))
    rng.shuffle(pairs)
    adaptation = Adaptation(
        level=level,
        seed=seed,
        base=tool_set,
        rules=tuple(rule for _, rule in pairs),
        fault_rate=recipe.fault_rate,
        slow_rate=recipe.slow_rate,
        latency_s=recipe.latency_s,
    )
    return ToolSet(tools=tuple(spec for spec, _ in pairs), adaptation=adaptation)


class PerturbedEnvironment(Environment):
    """An environment with perturbed tools, different for each task; the questions are unchanged."""

    def __init__(self, environment: Environment, level: PerturbationLevel, seed: int) -> None:
        self._environment = environment
        self._level: PerturbationLevel = level
        self._seed = seed

    @property
    def name(self) -> str:
        return self._environment.name

    @property
    def endless(self) -> bool:
        return self._environment.endless

    def teacher(self, mode: Mode) -> Teacher:
        """Raise ConfigError: scripted teachers know the tools as they are without perturbation."""
        self._environment.teacher(mode)  # if there is none at all, that is the better message
        raise ConfigError(
            f"the scripted teacher of {self.name!r} knows the tools without perturbation only, "
            f"found env.perturbation = {self._level!r}: generate demonstrations with 'clean'"
        )

    def tasks(self, split: Split, seed: int, count: int | None) -> Sequence[Task]:
        """Return the environment's tasks, perturbed. Raises ConfigError as it does."""
        return [self._perturbed(task) for task in self._environment.tasks(split, seed, count)]

    def all_tasks(self) -> Sequence[Task]:
        """Return every task, perturbed. Raises ConfigError where the task set is endless."""
        return [self._perturbed(task) for task in self._environment.all_tasks()]

    def _perturbed(self, task: Task) -> Task:
        seed = stable_hash("perturbed task", self._seed, task.id)
        tags = {**task.tags, "perturbation": self._level, "perturbation_seed": str(self._seed)}
        tool_set = perturb(task.tool_set, self._level, seed)
        return replace(task, tool_set=tool_set, tags=tags)


def _perturbed_tool(
    tool: ToolSpec, name: str, recipe: Recipe, rng: Random
) -> tuple[ToolSpec, CallRule]:
    noise = rng.choice(recipe.documents)
    shape = perturbed_parameters(tool.parameters, recipe, noise, rng)
    description = noisy_text(tool.description, noise, rng)
    spec = ToolSpec(name=name, description=description, parameters=shape.schema)
    return spec, CallRule(target=tool.name, parameters=shape.names, types=shape.types)
