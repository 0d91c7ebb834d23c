"""The ceiling without trials: the highest success rate that execution calls alone allow.

It is the success rate of an optimal policy which knows how tasks are generated. For each task, an
exact search over its beliefs finds the Bayes-optimal calls; the mean over sampled tasks is a Monte
Carlo estimate with a standard error. The policy knows that the names of new tools carry no
information. It makes each call in the way that fails least: with every possible name of the
argument, and one guess of the key.

There are two kinds of policy. In a task without marks it *moves texts*: it calls tools on the
question's value or on results, and answers with a result. It remembers the results that it has
seen, but it does not compute an operation itself: a policy that does needs no tool, and its ceiling
is 1. In a task with marks the policy may compute operations; it succeeds once every needed tool
whose mark is in the answer has answered, because then it knows these marks. It does not guess a
mark: marks differ, so a policy that knows those of all other tools guesses one right 1 time in 27 -
tools, and with a ceiling c guessing adds at most (1 - c) / (27 - tools).

A tool that must be opened counts as refused once, which can only raise the ceiling.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import permutations
from math import sqrt
from typing import Literal

from envs.errors import ConfigError
from envs.tasks import Ceiling
from envs.tasksets.catalog.compositions import admitted
from envs.tasksets.catalog.config import CatalogConfig
from envs.tasksets.catalog.instances import VAGUE_DOC, Instance
from envs.tasksets.catalog.operations import Operation
from envs.tasksets.catalog.questions import sample_parts
from envs.tasksets.catalog.quirks import KEYS
from envs.tasksets.catalog.sampling import SampledTools, TaskKind, sample_kind

Candidate = tuple[tuple[Operation, ...], float]
"""A possible operation for each tool, and the weight of this assignment."""
ToolState = Literal["fresh", "repaired", "works"]
"""Never called; refused once, so that the next call answers; has answered."""


def estimate_ceiling(config: CatalogConfig, execution_calls: int, tasks: int = 200) -> Ceiling:
    """Return the ceiling over `tasks` held-out tasks, with `execution_calls` calls in each.

    Raises ConfigError if two tools may do the same: the beliefs do not cover duplicates.
    """
    results = [task_ceiling(config, execution_calls, index) for index in range(tasks)]
    mean = sum(results) / tasks
    variance = sum((result - mean) ** 2 for result in results) / max(tasks - 1, 1)
    return Ceiling(mean, sqrt(variance / tasks))


def task_ceiling(config: CatalogConfig, execution_calls: int, index: int) -> float:
    """Return the optimal policy's chance of success in held-out task number `index`."""
    kind = sample_kind(config, "heldout", 0, index)
    if config.duplicates > 0 or config.tools > len(kind.known):
        raise ConfigError(
            f"expected tools that all differ, found duplicates = {config.duplicates} and "
            f"{config.tools} tools: set duplicates = 0, and at most {len(kind.known)} tools"
        )
    task = sample_parts(config, "heldout", 0, index)
    sampled = task.tools
    situation = _Situation(
        belief=tuple(_belief(config, kind, sampled)),
        states=("fresh",) * len(sampled.listed),
        texts=frozenset((task.value,)),
    )
    policy = _Policy(
        known=kind.known,
        looks=tuple((tool.doc, _refusal_chance(config, tool)) for tool in sampled.listed),
        value=task.value,
        answer=task.answer,
        needed=frozenset(
            tool.operation for tool in sampled.needed if kind.marked and tool.mark in task.answer
        ),
    )
    return policy.best(situation, execution_calls)


def _belief(config: CatalogConfig, kind: TaskKind, sampled: SampledTools) -> Iterator[Candidate]:
    """Yield each possible assignment of operations to tools, with its unnormalised weight.

    The weight is the likelihood of the question and of the docs, given the assignment.
    """
    goals = tuple(tool.operation for tool in sampled.needed)
    for operations in permutations(kind.known, len(sampled.listed)):
        if not set(goals) <= set(operations):
            continue
        asked = sum(admitted(each, kind.novelty) for each in permutations(operations, kind.depth))
        weight = 1 / asked  # the question is one of the admitted sequences, chosen evenly
        for tool, operation in zip(sampled.listed, operations, strict=True):
            weight *= _doc_chance(config, kind, tool.doc, operation)
        if weight > 0:
            yield operations, weight


def _doc_chance(config: CatalogConfig, kind: TaskKind, doc: str, operation: Operation) -> float:
    """Return the chance that a tool with `operation` has the doc `doc`."""
    if doc in ("", VAGUE_DOC):
        return config.docs.get("missing" if doc == "" else "vague", 0.0)
    if doc == f"{operation.name} x":
        return config.docs.get("true", 0.0)
    return config.docs.get("false", 0.0) / (len(kind.known) - 1)


def _refusal_chance(config: CatalogConfig, tool: Instance) -> float:
    """Return the chance that the best first call of a tool with these arguments is refused.

    The two documented arguments of `pair` and `order` tell these two apart from all other quirks,
    but not from each other: the policy bets on the more frequent one. For other tools it passes
    every argument name at once, so only a wrong key, `busy` and `closed` refuse its call.
    """
    shares = config.quirks
    pair, order = shares.get("pair", 0.0), shares.get("order", 0.0)
    if tool.quirk.kind in ("pair", "order"):
        return min(pair, order) / (pair + order)
    wrong_key = shares.get("key", 0.0) * (1 - 1 / len(KEYS))
    refused = wrong_key + shares.get("busy", 0.0) + shares.get("closed", 0.0)
    return refused / (sum(shares.values()) - pair - order)


@dataclass(frozen=True, slots=True)
class _Situation:
    """State of the search; `belief` lists the candidates that are still possible."""

    belief: tuple[Candidate, ...]
    states: tuple[ToolState, ...]
    texts: frozenset[str]
    """The question's value and all results so far."""
    facts: frozenset[tuple[int, str, str]] = frozenset()
    """Tool, text and result of every call that was answered."""

    @property
    def key(self) -> tuple[tuple[ToolState, ...], frozenset[str], frozenset[tuple[int, str, str]]]:
        """Key of the memo table; it omits the belief, which follows from the facts."""
        return self.states, self.texts, self.facts

    def refused(self, tool: int) -> "_Situation":
        return replace(self, states=_with(self.states, tool, "repaired"))

    def answers(self, tool: int, text: str) -> Iterator[tuple[float, "_Situation"]]:
        """Yield each possible result of `tool` on `text`: its chance and the next situation."""
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
class _Policy:
    """Searches all sequences of calls; `needed` is empty if the task has no marks."""

    known: tuple[Operation, ...]
    looks: tuple[tuple[str, float], ...]
    """Doc of each tool, and the chance that its first call is refused."""
    value: str
    answer: str
    needed: frozenset[Operation]
    _reach: dict[tuple[str, int], bool] = field(default_factory=dict)
    _memo: dict[object, float] = field(default_factory=dict)

    def best(self, situation: _Situation, calls: int) -> float:
        """Return the best chance of success with at most `calls` more calls."""
        if self._won(situation):
            return 1.0
        if self._lost(situation, calls):
            return 0.0
        key = (situation.key, calls)
        if key not in self._memo:
            self._memo[key] = self._search(situation, calls)
        return self._memo[key]

    def _search(self, situation: _Situation, calls: int) -> float:
        """Return the chance of success of the best next call, by expectimax over its outcomes.

        Results from which the answer cannot be reached in time are not used as inputs. A call that
        adds no fact is left out too: it would only use up calls. With marks, only the question's
        value is used, because all that counts is which tools have answered.
        """
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
        """Yield one tool of each group of tools that the policy cannot distinguish.

        Uncalled tools with the same doc and state are interchangeable, so searching one of them is
        exact. Called tools differ by their results.
        """
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
        """Return the operations of the tools that have answered.

        Every candidate agrees on them: with marks, an answer identifies its operation.
        """
        operations = situation.belief[0][0]
        return {operations[tool] for tool, _, _ in situation.facts}

    def _reaches(self, text: str, calls: int) -> bool:
        """Whether at most `calls` known operations can turn `text` into the answer."""
        if text == self.answer or calls == 0:
            return text == self.answer
        if (text, calls) not in self._reach:
            self._reach[text, calls] = any(
                self._reaches(operation.apply(text), calls - 1) for operation in self.known
            )
        return self._reach[text, calls]
