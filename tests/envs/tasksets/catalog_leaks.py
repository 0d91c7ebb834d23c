"""Leak checks: nothing that evaluation holds out is in `train`, and no prompt shows its answer."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from envs.tasks import Task
from envs.tasksets.catalog.compositions import reserved_pairs
from envs.tasksets.catalog.environment import ExactMatch
from envs.tasksets.catalog.operations import OPERATIONS, RESERVED_OPERATIONS, recognise

_ALL = OPERATIONS + RESERVED_OPERATIONS
_RESERVED = {operation.name for operation in RESERVED_OPERATIONS}


def leaks(train: Sequence[Task], other: Sequence[Task]) -> list[str]:
    """Return a sentence for every leak from `other`, a split for evaluation, into `train`."""
    return [
        *_shared("name", _names(train), _names(other)),
        *_shared("source", _sources(train), _sources(other)),
        *_reserved_in_train(train),
        *_not_new(train, other),
        *_shown_answers([*train, *other]),
    ]


def composition_of(task: Task) -> tuple[str, ...]:
    """Return the names of the operations in a question, stated by name or by example."""
    names: list[str] = []
    for goal in task.question.split()[:-1]:
        probe, is_example, result = goal.partition(">")
        found = recognise(probe, result, _ALL) if is_example else None
        names.append(found.name if found else goal)
    return tuple(names)


def _names(tasks: Sequence[Task]) -> set[str]:
    return {tool.name for task in tasks for tool in task.tool_set.tools}


def _sources(tasks: Sequence[Task]) -> set[str]:
    return {source for task in tasks for source in task.tool_set.sources}


def _shared(what: str, ours: set[str], theirs: set[str]) -> Iterator[str]:
    for each in sorted(ours & theirs):
        yield f"{what} {each!r} is in train and held out"


def _reserved_in_train(train: Sequence[Task]) -> Iterator[str]:
    expressions = {operation.expression for operation in RESERVED_OPERATIONS}
    for task in train:
        composition = composition_of(task)
        described = {word for tool in task.tool_set.tools for word in tool.description.split()}
        for name in sorted(_RESERVED & {*composition, *described}):
            yield f"{task.id} of train names the reserved operation {name}"
        for source in task.tool_set.sources:
            if any(f"return {each}\n" in source for each in expressions):
                yield f"{task.id} of train has a tool with a reserved operation"
        for pair in sorted(set(pairwise(composition)) & reserved_pairs()):
            yield f"{task.id} of train composes the reserved pair {' '.join(pair)}"


def _not_new(train: Sequence[Task], other: Sequence[Task]) -> Iterator[str]:
    trained = {composition_of(task) for task in train}
    operations = {name for composition in trained for name in composition}
    for task in other:
        composition = composition_of(task)
        novelty = task.tags["novelty"]
        if novelty == "operations" and set(composition) <= operations:
            yield f"{task.id} asks for no new operation"
        if novelty == "compositions" and composition in trained:
            yield f"{task.id} asks for a composition of train, {' '.join(composition)}"
        if novelty == "names" and _RESERVED & set(composition):
            yield f"{task.id} should have new names only, and asks for a reserved operation"


def _shown_answers(tasks: Sequence[Task]) -> Iterator[str]:
    for task in tasks:
        if not isinstance(task.scorer, ExactMatch):
            continue
        docs = " ".join(tool.description for tool in task.tool_set.tools)
        words = set(re.split(r"[\s>]+", f"{task.question} {docs}"))
        if task.scorer.expected in words:
            yield f"{task.id} shows its answer {task.scorer.expected!r}"
