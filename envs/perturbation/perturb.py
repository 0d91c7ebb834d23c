"""Perturbation by rule: any tool set with other names, wording and schemas, and with faults.

The levels are RoTBench's (Ye et al., "RoTBench: A Multi-Level Benchmark for Evaluating the
Robustness of Large Language Models in Tool Learning", EMNLP 2024, arXiv 2401.08326): `slight`
misspells names (insertion, omission, substitution), `medium` reverses them or makes them nonsense,
`heavy` exchanges the names of tools, and of the parameters of a tool, and adds required parameters,
and `union` combines all of these. As in RoTBench, some names do not change. This project adds, per
level in `envs/perturbation/levels.py`: paraphrased and shortened documentation, another order,
other parameter types, distractors, tool faults and latency. Only the top level of a tool's
parameters changes. Documentation still uses the old names, as outdated documentation does.
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
    """Return `tool_set` perturbed; the result depends only on the arguments.

    `clean` returns the set itself. Every call of a base tool can still be made, except that a new
    parameter may by chance have the name of an undocumented argument, which then cannot be passed.
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
    return ToolSet(
        tools=tuple(spec for spec, _ in pairs),
        adaptation=adaptation,
        instructions=tool_set.instructions,
        left_out=tool_set.left_out,
    )


class PerturbedEnvironment(Environment):
    """An environment whose tools are perturbed, differently for each task; questions stay equal."""

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
        """Raise ConfigError: scripted teachers know only the unperturbed tools."""
        self._environment.teacher(mode)  # without any teacher, that error is more helpful
        raise ConfigError(
            f"the scripted teacher of {self.name!r} knows only the unperturbed tools, "
            f"found env.perturbation = {self._level!r}: set it to 'clean' for demonstrations"
        )

    def tasks(self, split: Split, seed: int, count: int | None) -> Sequence[Task]:
        """Return the environment's tasks, perturbed. Raises ConfigError as the environment does."""
        return [self._perturbed(task) for task in self._environment.tasks(split, seed, count)]

    def all_tasks(self) -> Sequence[Task]:
        """Return every task, perturbed. Raises ConfigError if the task set is endless."""
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
