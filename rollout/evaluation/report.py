"""Report of an evaluation: one row for all tasks, one per split, one per value of a tag."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

from envs.errors import ConfigError
from envs.tools import JsonObject
from rollout.evaluation.lost_attempts import LostAttempts
from rollout.evaluation.statistics import (
    ClusteredEstimate,
    best_of_k,
    majority_score,
    mean_estimate,
    ratio_estimate,
)
from rollout.evaluation.summary import EvalRow, EvalSummary, summarise

REPORT_VERSION = 1
"""Version of `eval.json`; it increases when a key changes its meaning or is removed."""
SPLIT, ALL = "split", "all"
JOINED_BY = "*"
"""`depth*novelty` in `eval.by` gives one row per pair of values."""
_FEWEST, _MOST = 2, 8
_FEWEST_VOTES = 3
_LOST_SHARE = 0.01
"""Share of lost episodes above which the report says what they could change."""

Measure = Callable[[EvalRow], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """One row: estimates over the episodes that count, each with its error over tasks."""

    by: str
    """`all`, `split`, or the name of one or more tags."""
    value: str
    tasks: int
    """Number of distinct tasks with at least one sample that counts."""
    samples: int
    """Number of episodes that count."""
    lost: int
    """Number of episodes that do not count: infrastructure failures, or scores that are not
    numbers.
    """
    pass_at_k: Mapping[int, ClusteredEstimate]
    """By k: the expected score of the best of k samples, over the tasks with k or more samples
    that count. k = 1 is the mean score.
    """
    majority: ClusteredEstimate | None
    """Score of each task's most frequent answer; None if no task has three samples."""
    trial_calls: ClusteredEstimate
    """Per episode."""
    tool_error_rate: ClusteredEstimate
    """Share of calls."""
    malformed_rate: ClusteredEstimate
    """Share of turns."""
    tokens: ClusteredEstimate
    """Sampled tokens per episode."""


@dataclass(frozen=True, slots=True)
class EvalReport:
    """The complete result of an evaluation."""

    summary: EvalSummary
    splits: tuple[str, ...]
    rows: tuple[ReportRow, ...]
    notes: tuple[str, ...]
    """Remarks that a reader of the figures needs."""
    losses: LostAttempts | None = None
    """Attempts without a reward; None where only the last attempts are known."""

    @property
    def ks(self) -> list[int]:
        """The values of k for pass@k."""
        return sorted(self.rows[0].pass_at_k)

    def to_json(self) -> JsonObject:
        """Return the content of `eval.json` without the run's settings.

        The fields of the summary are at the top level.
        """
        return {
            "version": REPORT_VERSION,
            **self.summary.to_json(),
            "splits": list(self.splits),
            "notes": list(self.notes),
            "lost_attempts": cast(JsonObject, asdict(self.losses)) if self.losses else None,
            "rows": [cast(JsonObject, _row_json(row)) for row in self.rows],
        }


def evaluation_report(
    rows: Sequence[EvalRow], by: Sequence[str] = (), losses: LostAttempts | None = None
) -> EvalReport:
    """Report on any number of episodes, also none; `losses` are those of all their attempts.

    `by` names the tags that get rows; if it is empty, every tag with 2 to 8 values does. Raises
    ConfigError for a tag that no episode has.
    """
    check_tags([row.tags for row in rows], by)
    splits = tuple(sorted({row.split for row in rows}))
    most = max((len(group) for group in _by_task(rows).values()), default=1)
    ks = [1 << i for i in range(most.bit_length())]
    table = [_row(rows, (ALL, ""), ks)]
    for name in [*([SPLIT] if len(splits) > 1 else []), *(by or spread_tags(rows))]:
        for value, members in grouped(rows, name).items():
            table.append(_row(members, (name, value), ks))
    notes = [*_notes(rows, table[0]), *(losses.notes() if losses else [])]
    return EvalReport(summarise(rows), splits, tuple(table), tuple(notes), losses)


def check_tags(tags: Sequence[Mapping[str, str]], by: Sequence[str]) -> None:
    """Raise ConfigError if `by` names a tag that no task has."""
    known = {name for carried in tags for name in carried}
    unknown = [name for joined in by for name in joined.split(JOINED_BY) if name not in known]
    if tags and unknown:
        raise ConfigError(
            f"expected tags of the tasks ({', '.join(sorted(known)) or 'they have none'}) for the "
            f"table's rows, found {', '.join(unknown)}: change eval.by or --by"
        )


def spread_tags(rows: Iterable[EvalRow]) -> list[str]:
    """Return the tags with 2 to 8 different values, in the tasks' order."""
    values: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        for name, value in row.tags.items():
            values[name].add(value)
    return [name for name, found in values.items() if _FEWEST <= len(found) <= _MOST]


def grouped(rows: Iterable[EvalRow], by: str) -> dict[str, list[EvalRow]]:
    """Group rows by split or by the value of a tag (`-` if it is missing).

    Values that are numbers are sorted as numbers.
    """
    found: defaultdict[str, list[EvalRow]] = defaultdict(list)
    for row in rows:
        if by == SPLIT:
            found[row.split].append(row)
        else:
            values = [row.tags.get(name, "-") for name in by.split(JOINED_BY)]
            found[f" {JOINED_BY} ".join(values)].append(row)
    return {value: found[value] for value in sorted(found, key=_natural)}


def _natural(value: str) -> list[tuple[int, float, str]]:
    parts = value.split(f" {JOINED_BY} ")
    return [
        (0, float(part), "") if part.lstrip("-").isdecimal() else (1, 0.0, part) for part in parts
    ]


def _row(rows: Sequence[EvalRow], of: tuple[str, str], ks: Sequence[int]) -> ReportRow:
    counted = [row for row in rows if row.counts]
    tasks = list(_by_task(counted).values())
    votes = [task for task in tasks if len(task) >= _FEWEST_VOTES]
    return ReportRow(
        by=of[0],
        value=of[1],
        tasks=len(tasks),
        samples=len(counted),
        lost=len(rows) - len(counted),
        pass_at_k={k: _pass_at_k(tasks, k) for k in ks},
        majority=mean_estimate([_majority(task) for task in votes]) if votes else None,
        trial_calls=_rate(tasks, lambda row: row.trial_calls, lambda row: 1.0),
        tool_error_rate=_share(tasks, lambda row: row.tool_errors, lambda row: row.calls),
        malformed_rate=_share(
            tasks, lambda row: sum(row.policy_errors.values()), lambda row: row.turns
        ),
        tokens=_rate(tasks, lambda row: row.sampled_tokens, lambda row: 1.0),
    )


def _pass_at_k(tasks: Sequence[Sequence[EvalRow]], k: int) -> ClusteredEstimate:
    return mean_estimate(
        [best_of_k([row.score for row in task], k) for task in tasks if len(task) >= k]
    )


def _majority(task: Sequence[EvalRow]) -> float:
    return majority_score([(row.answer, row.score) for row in task])


def _share(tasks: Sequence[Sequence[EvalRow]], part: Measure, whole: Measure) -> ClusteredEstimate:
    clusters = [(sum(map(part, task)), sum(map(whole, task))) for task in tasks]
    return ratio_estimate(clusters, share=True)


def _rate(tasks: Sequence[Sequence[EvalRow]], part: Measure, whole: Measure) -> ClusteredEstimate:
    return ratio_estimate([(sum(map(part, task)), sum(map(whole, task))) for task in tasks])


def _by_task(rows: Iterable[EvalRow]) -> dict[str, list[EvalRow]]:
    tasks: defaultdict[str, list[EvalRow]] = defaultdict(list)
    for row in rows:
        tasks[row.task].append(row)
    return dict(tasks)


def _notes(rows: Sequence[EvalRow], total: ReportRow) -> list[str]:
    notes = []
    unseen = len(_by_task(rows)) - total.tasks
    if total.lost:
        notes.append(
            f"{total.lost} of {len(rows)} episodes are excluded from all figures: they failed "
            "because of the infrastructure, not the policy"
        )
    if total.lost > _LOST_SHARE * len(rows):
        low, high = (_mean_with_lost(rows, score) for score in (0.0, 1.0))
        notes.append(
            f"the accuracy is between {low:.2f} and {high:.2f} if all of these were wrong or right"
        )
    if unseen:
        notes.append(f"{unseen} tasks are excluded from all figures: none of their episodes counts")
    for k, estimate in total.pass_at_k.items():
        if estimate.clusters < total.tasks:
            notes.append(
                f"pass@{k} is over the {estimate.clusters} of {total.tasks} tasks that have {k} or "
                "more samples that count"
            )
    return notes


def _mean_with_lost(rows: Sequence[EvalRow], score: float) -> float:
    """Return the mean over tasks of their mean score, with `score` for what does not count."""
    tasks = _by_task(rows).values()
    means = [sum(r.score if r.counts else score for r in task) / len(task) for task in tasks]
    return sum(means) / len(means)


def _row_json(row: ReportRow) -> dict[str, object]:
    pass_at_k = {str(k): asdict(estimate) for k, estimate in row.pass_at_k.items()}
    return {**asdict(row), "pass_at_k": pass_at_k}
