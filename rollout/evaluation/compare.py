"""Compares evaluations on the tasks they share: paired differences, overall and by difficulty."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from envs.errors import ConfigError
from rollout.evaluation.report import ALL, SPLIT, check_tags, grouped, spread_tags
from rollout.evaluation.statistics import (
    ClusteredEstimate,
    Paired,
    are_shares,
    holm,
    mean_estimate,
    paired,
)
from rollout.evaluation.summary import EvalRow

TaskKey = tuple[str, int]
"""Id and hash of the question; the same id with another question is a different task."""
_ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: its name, and the episodes of one evaluation per seed."""

    name: str
    seeds: tuple[Sequence[EvalRow], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SideScore:
    """Result of a side on the shared tasks; `score` is over tasks, or over seeds if several."""

    name: str
    tasks: tuple[int, ...]
    """Number of tasks with an episode that counts, per seed, shared or not."""
    samples: tuple[int, ...]
    """Number of episodes that count on shared tasks, per seed."""
    score: ClusteredEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """Difference of two sides (second minus first), overall or for one value of a tag."""

    by: str
    value: str
    first: str
    second: str
    tasks: int
    """Number of shared tasks, summed over seeds."""
    first_score: float
    second_score: float
    difference: Paired
    p_holm: float
    """`difference.p` corrected for the number of pairs of sides (Holm)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of a comparison; `rows` are grouped by value, then by pair of sides."""

    unit: Literal["task", "seed"]
    """Unit by which differences are paired; standard errors are over these units."""
    shared: tuple[int, ...]
    """Number of tasks that all sides have, per seed."""
    sides: tuple[SideScore, ...]
    rows: tuple[PairRow, ...]
    notes: tuple[str, ...]


def compare(sides: Sequence[Side], by: Sequence[str] = ()) -> Comparison:
    """Compare two or more sides with the same number of seeds, seed by seed in the given order.

    Raises ConfigError for a single side, repeated names, different numbers of seeds, a seed whose
    evaluations share no task, or a tag in `by` that no task has.
    """
    _check(sides)
    shared = [_shared(sides, seed) for seed in range(len(sides[0].seeds))]
    rows = [row for side in sides for seed in side.seeds for row in seed]
    check_tags([row.tags for row in rows], by)
    used = [
        Side(side.name, tuple(_only(*pair) for pair in zip(side.seeds, shared, strict=True)))
        for side in sides
    ]
    groups = _groups(used[0], by)
    pairs = [row for of, keys in groups.items() for row in _pair_rows(used, of, keys)]
    return Comparison(
        unit="task" if len(shared) == 1 else "seed",
        shared=tuple(map(len, shared)),
        sides=tuple(_side_score(*pair) for pair in zip(sides, used, strict=True)),
        rows=tuple(pairs),
        notes=tuple(_notes(sides, shared)),
    )


def _check(sides: Sequence[Side]) -> None:
    names = [side.name for side in sides]
    if len(sides) < 2:
        raise ConfigError(f"expected two or more sides to compare, found {names}")
    if len(set(names)) < len(names):
        raise ConfigError(f"expected different names for the sides, found {names}: write NAME=RUN")
    seeds = {side.name: len(side.seeds) for side in sides}
    if not all(seeds.values()):
        raise ConfigError(f"expected at least one evaluation on every side, found {seeds}")
    if len(set(seeds.values())) > 1:
        raise ConfigError(
            f"expected the same number of seeds on every side, found {seeds}: seeds are paired in "
            "order"
        )


def _shared(sides: Sequence[Side], seed: int) -> set[TaskKey]:
    tasks = [set(_scores(side.seeds[seed])) for side in sides]
    shared = set.intersection(*tasks)
    if not shared:
        counts = ", ".join(
            f"{side.name} {len(keys)}" for side, keys in zip(sides, tasks, strict=True)
        )
        raise ConfigError(
            "expected evaluations of the same tasks, found no task that all sides have "
            f"(tasks: {counts}): evaluate with the same eval.split, eval.seed and run.seed"
        )
    return shared


def _only(rows: Sequence[EvalRow], keys: set[TaskKey]) -> list[EvalRow]:
    return [row for row in rows if row.counts and _key(row) in keys]


def _groups(side: Side, by: Sequence[str]) -> dict[tuple[str, str], set[TaskKey]]:
    """Return the shared tasks of every row of the table, by (tag, value)."""
    rows = [row for seed in side.seeds for row in seed]
    found = {(ALL, ""): set(map(_key, rows))}
    splits = [SPLIT] if len({row.split for row in rows}) > 1 else []
    for name in [*splits, *(by or spread_tags(rows))]:
        for value, members in grouped(rows, name).items():
            found[name, value] = set(map(_key, members))
    return found


def _pair_rows(sides: Sequence[Side], of: tuple[str, str], keys: set[TaskKey]) -> list[PairRow]:
    rows = []
    for first, second in combinations(sides, 2):
        a, b = _values(first, keys), _values(second, keys)
        difference = paired(
            [y - x for x, y in zip(a, b, strict=True)],
            bounded=are_shares((*a, *b)),
            units=_units(first, keys),
        )
        tasks = sum(len(keys & set(map(_key, seed))) for seed in first.seeds)
        rows.append(
            PairRow(
                by=of[0],
                value=of[1],
                first=first.name,
                second=second.name,
                tasks=tasks,
                first_score=sum(a) / len(a),
                second_score=sum(b) / len(b),
                difference=difference,
                p_holm=difference.p,
            )
        )
    adjusted = holm([row.difference.p for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]


def _values(side: Side, keys: set[TaskKey]) -> list[float]:
    """Return the scores that are paired: one per task, or one per seed if there are several."""
    seeds = []
    for rows in side.seeds:
        scores = _scores(rows)
        seeds.append([scores[key] for key in sorted(scores.keys() & keys)])
    if len(seeds) == 1:
        return seeds[0]
    return [sum(scores) / len(scores) for scores in seeds if scores]


def _units(side: Side, keys: set[TaskKey]) -> int:
    """Return how many tasks one value of `_values` is the mean of; the fewest of all seeds."""
    if len(side.seeds) == 1:
        return 1
    tasks = [len(keys & set(map(_key, rows))) for rows in side.seeds]
    return min(count for count in tasks if count)


def _side_score(complete: Side, used: Side) -> SideScore:
    keys = {_key(row) for rows in used.seeds for row in rows}
    return SideScore(
        name=complete.name,
        tasks=tuple(len(_scores(rows)) for rows in complete.seeds),
        samples=tuple(map(len, used.seeds)),
        score=mean_estimate(_values(used, keys), _units(used, keys)),
    )


def _scores(rows: Sequence[EvalRow]) -> Mapping[TaskKey, float]:
    """Return the mean score of every task with an episode that counts."""
    scores: defaultdict[TaskKey, list[float]] = defaultdict(list)
    for row in rows:
        if row.counts:
            scores[_key(row)].append(row.score)
    return {key: sum(found) / len(found) for key, found in scores.items()}


def _key(row: EvalRow) -> TaskKey:
    return row.task, row.question


def _notes(sides: Sequence[Side], shared: Sequence[set[TaskKey]]) -> list[str]:
    notes = []
    for side in sides:
        for seed, keys in enumerate(shared):
            unshared = set(_scores(side.seeds[seed])) - keys
            if unshared:
                where = f"{side.name}, seed {seed + 1}" if len(shared) > 1 else side.name
                notes.append(
                    f"{where}: {len(unshared)} of {len(unshared) + len(keys)} tasks are excluded, "
                    "because not every side has them"
                )
    units = len(shared) if len(shared) > 1 else len(shared[0])
    if 2 / 2**units > _ALPHA:
        what = "seeds" if len(shared) > 1 else "tasks"
        notes.append(
            f"with {units} {what} the permutation test cannot give a p below {2 / 2**units:.2g}"
        )
    if len(sides) > 2:
        notes.append("p (Holm) is corrected for the pairs of one row, not for the number of rows")
    return notes
