"""The ceiling of a policy that may not try: what the best player can reach by execution calls.

The player knows the published generator and plays Bayes-optimally, by an exact search over its
beliefs, task by task; the mean over drawn tasks is a Monte Carlo estimate with a standard error.
It knows the names of new tools to mean nothing, and calls them in the way that fails least: with
every name that the argument may have, and one guess of the key.

Two players. In a task without marks it *moves texts*: it calls tools on the question's value or on
results, and answers with a result; it knows what it is shown, but works no operation out in its
head (who does needs no tool: its ceiling is 1). In a task with marks it may think: it wins when
every tool it needs has answered once, for then it knows all marks. What is left out there: a letter
guessed right (1 in 26), and a mark that a later operation drops.

A tool that must be opened is counted as refused once, which errs in the player's favour.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import permutations
from math import sqrt
from typing import Literal

from envs.config import CatalogConfig
from envs.errors import ConfigError
from envs.tasksets.catalog.compositions import admitted
from envs.tasksets.catalog.drawing import DrawnTools, TaskKind, draw_kind
from envs.tasksets.catalog.environment import draw_parts
from envs.tasksets.catalog.instances import VAGUE_DOC, Instance
from envs.tasksets.catalog.operations import Operation
from envs.tasksets.catalog.quirks import KEYS

Candidate = tuple[tuple[Operation, ...], float]
"""What each tool may do, and the weight of that."""
ToolState = Literal["fresh", "mended", "works"]
"""Never called; refused, so that the next call answers; has answered."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Highest chance of success, and the standard error of its estimate."""

    success: float
    standard_error: float


def ceiling(config: CatalogConfig, execution_calls: int, tasks: int = 200) -> Ceiling:
    """Return the ceiling over `tasks` held-out tasks of `config`, with that many calls each.

    Raises ConfigError for duplicates, with or without asking: beliefs about them are not kept.
    """
    results = [task_ceiling(config, execution_calls, index) for index in range(tasks)]
    mean = sum(results) / tasks
    variance = sum((result - mean) ** 2 for result in results) / max(tasks - 1, 1)
    return Ceiling(mean, sqrt(variance / tasks))


def task_ceiling(config: CatalogConfig, execution_calls: int, index: int) -> float:
    """Return the best player's chance at one drawn held-out task, from what the task shows."""
    kind = draw_kind(config, "heldout", 0, index)
    if config.duplicates > 0 or config.tools > len(kind.known):
        raise ConfigError(
            f"expected tools that all differ, found duplicates = {config.duplicates} and "
            f"{config.tools} tools: set duplicates = 0, and at most {len(kind.known)} tools"
        )
    task = draw_parts(config, "heldout", 0, index)
    drawn = task.tools
    goals = tuple(tool.operation for tool in drawn.needed)
    situation = _Situation(
        belief=tuple(_belief(config, kind, drawn)),
        states=("fresh",) * len(drawn.listed),
        texts=frozenset((task.value,)),
    )
    player = _Player(
        known=kind.known,
        looks=tuple((tool.doc, _refusal_chance(config, tool)) for tool in drawn.listed),
        value=task.value,
        answer=task.answer,
        needed=frozenset(goals) if kind.marked else frozenset(),
    )
    return player.best(situation, execution_calls)


def _belief(config: CatalogConfig, kind: TaskKind, drawn: DrawnTools) -> Iterator[Candidate]:
    """Yield what the tools may do, weighted by question and docs; not normalised."""
    goals = tuple(tool.operation for tool in drawn.needed)
    for operations in permutations(kind.known, len(drawn.listed)):
        if not set(goals) <= set(operations):
            continue
        asked = sum(admitted(each, kind.novelty) for each in permutations(operations, kind.depth))
        weight = 1 / asked
        for tool, operation in zip(drawn.listed, operations, strict=True):
            weight *= _doc_chance(config, kind, tool.doc, operation)
        if weight > 0:
            yield operations, weight


def _doc_chance(config: CatalogConfig, kind: TaskKind, doc: str, operation: Operation) -> float:
    """Return the chance that a tool with `operation` has that doc."""
    if doc in ("", VAGUE_DOC):
        return config.docs.get("missing" if doc == "" else "vague", 0.0)
    if doc == f"{operation.name} x":
        return config.docs.get("true", 0.0)
    return config.docs.get("false", 0.0) / (len(kind.known) - 1)


def _refusal_chance(config: CatalogConfig, tool: Instance) -> float:
    """Return the chance that the best first call of a tool that looks like this is refused."""
    shares = config.quirks
    pair, order = shares.get("pair", 0.0), shares.get("order", 0.0)
    if tool.quirk.kind in ("pair", "order"):
        return min(pair, order) / (pair + order)
    wrong_key = shares.get("key", 0.0) * (1 - 1 / len(KEYS))
    refused = wrong_key + shares.get("busy", 0.0) + shares.get("closed", 0.0)
    return refused / (sum(shares.values()) - pair - order)


@dataclass(frozen=True, slots=True)
class _Situation:
    """What the player knows and has; candidates are only those that nothing has ruled out."""

    belief: tuple[Candidate, ...]
    states: tuple[ToolState, ...]
    texts: frozenset[str]
    """The question's value and every result."""
    facts: frozenset[tuple[int, str, str]] = frozenset()
    """Tool, text and result of every call that was answered."""

    @property
    def key(self) -> tuple[tuple[ToolState, ...], frozenset[str], frozenset[tuple[int, str, str]]]:
        """What decides the rest; the belief follows from the facts."""
        return self.states, self.texts, self.facts

    def refused(self, tool: int) -> "_Situation":
        return replace(self, states=_with(self.states, tool, "mended"))

    def answers(self, tool: int, text: str) -> Iterator[tuple[float, "_Situation"]]:
        """Yield each thing that `tool` may make of `text`: its chance, and what follows."""
        parts: dict[str, list[Candidate]] = defaultdict(list)
        for operations, weight in self.belief:
            parts[operations[tool].apply(text)].append((operations, weight))
        total = sum(weight for _, weight in self.belief)
        for result, part in parts.items():
            yield (
                sum(weight for _, weight in part) / total,
                _Situation(
                    tuple(part),
                    _with(self.states, tool, "works"),
                    self.texts | {result},
                    self.facts | {(tool, text, result)},
                ),
            )


def _with(states: tuple[ToolState, ...], tool: int, state: ToolState) -> tuple[ToolState, ...]:
    return (*states[:tool], state, *states[tool + 1 :])


@dataclass(frozen=True, slots=True)
class _Player:
    """Searches every sequence of calls; `needed` is not empty where tools leave marks."""

    known: tuple[Operation, ...]
    looks: tuple[tuple[str, float], ...]
    """Of each tool, the doc, and the chance that its first call is refused."""
    value: str
    answer: str
    needed: frozenset[Operation]
    _reach: dict[tuple[str, int], bool] = field(default_factory=dict)
    _memo: dict[object, float] = field(default_factory=dict)

    def best(self, situation: _Situation, calls: int) -> float:
        """Return the best chance of success with at most `calls` calls to come."""
        if self._won(situation):
            return 1.0
        if self._lost(situation, calls):
            return 0.0
        key = (situation.key, calls)
        if key not in self._memo:
            self._memo[key] = self._search(situation, calls)
        return self._memo[key]

    def _search(self, situation: _Situation, calls: int) -> float:
        inputs = [
            text
            for text in sorted(situation.texts)
            if text == self.value or (not self.needed and self._reaches(text, calls))
        ]
        best = 0.0
        for tool in self._tools(situation):
            refusal = self.looks[tool][1] if situation.states[tool] == "fresh" else 0.0
            lost = refusal and refusal * self.best(situation.refused(tool), calls - 1)
            for text in inputs:
                won = sum(
                    chance * self.best(after, calls - 1)
                    for chance, after in situation.answers(tool, text)
                    if after.facts != situation.facts
                )
                best = max(best, lost + (1 - refusal) * won)
        return best

    def _tools(self, situation: _Situation) -> Iterator[int]:
        """Yield the tools that differ in anything the player knows."""
        called = {tool for tool, _, _ in situation.facts}
        seen: set[tuple[tuple[str, float], ToolState]] = set()
        for tool, state in enumerate(situation.states):
            look = (self.looks[tool], state)
            if tool in called or look not in seen:
                yield tool
            if tool not in called:
                seen.add(look)

    def _won(self, situation: _Situation) -> bool:
        if not self.needed:
            return self.answer in situation.texts
        return self.needed <= self._answered(situation)

    def _lost(self, situation: _Situation, calls: int) -> bool:
        if not self.needed:
            return not any(self._reaches(text, calls) for text in situation.texts)
        return len(self.needed - self._answered(situation)) > calls

    def _answered(self, situation: _Situation) -> set[Operation]:
        """Return the operations of the tools that have answered; with marks, all is known then."""
        operations = situation.belief[0][0]
        return {operations[tool] for tool, _, _ in situation.facts}

    def _reaches(self, text: str, calls: int) -> bool:
        """Whether any sequence of at most `calls` known operations makes the answer of `text`."""
        if text == self.answer or calls == 0:
            return text == self.answer
        if (text, calls) not in self._reach:
            self._reach[text, calls] = any(
                self._reaches(operation.apply(text), calls - 1) for operation in self.known
            )
        return self._reach[text, calls]
