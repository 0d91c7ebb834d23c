"""Evaluations: tables, and comparisons of two or more, with the statistics of `trialrun compare`.

The rows come from the index, so that a large evaluation is not read as a whole again; the figures
are those of `rollout.evaluation`.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from cluster.dashboard.figures.tasks import TaskScore, task_scores
from cluster.dashboard.filters.lexer import quoted
from cluster.dashboard.index.library import KnownRun
from cluster.dashboard.index.run_index import RunIndex
from cluster.dashboard.models.analysis import (
    Compare,
    CompareSide,
    Estimate,
    EvalTableRow,
    Evaluation,
    Flip,
    PairedRow,
)
from envs.seeds import stable_hash
from rollout.episode import Outcome
from rollout.evaluation.compare import Side, compare
from rollout.evaluation.lost_attempts import lost_attempts
from rollout.evaluation.report import ReportRow, evaluation_report
from rollout.evaluation.statistics import ClusteredEstimate
from rollout.evaluation.summary import EvalRow

_MOST_FLIPS = 500
_EVAL = """
WITH last AS (
    SELECT arg_max(uid, (attempt, uid)) AS uid FROM episodes GROUP BY episode
)
SELECT e.uid, e.task, e.outcome, coalesce(d.error, ''), d.trial_calls, d.execution_calls,
       d.tool_errors, d.turns, d.policy_errors, d.sampled_tokens, e.started_at, e.wall_s,
       d.answer, e.split, d.question
FROM last JOIN episodes e USING (uid) JOIN details d USING (uid) ORDER BY e.episode
"""


def eval_rows(index: RunIndex) -> list[EvalRow]:
    """Return the last attempt of every episode whose details are read."""
    with index.cursor() as cursor:
        found = cursor.execute(_EVAL).fetchall()
        parts: dict[int, dict[str, float]] = defaultdict(dict)
        for uid, name, value in cursor.execute("SELECT * FROM parts").fetchall():
            parts[uid][name] = value
        tags: dict[int, dict[str, str]] = defaultdict(dict)
        for uid, name, value in cursor.execute("SELECT * FROM tags").fetchall():
            tags[uid][name] = value
    return [
        EvalRow(
            task=task,
            outcome=Outcome(outcome),
            error=error,
            parts=parts[uid],
            trial_calls=trials or 0,
            execution_calls=executions or 0,
            tool_errors=errors or 0,
            turns=turns or 0,
            policy_errors={"invalid": faults} if faults else {},
            sampled_tokens=sampled or 0,
            started_at=started,
            ended_at=started + wall,
            answer=answer or "",
            split=split,
            tags=tags[uid],
            question=stable_hash(question or ""),
        )
        for (
            uid, task, outcome, error, trials, executions, errors, turns, faults, sampled,
            started, wall, answer, split, question,
        ) in found
    ]  # fmt: skip


def evaluation_of(run: KnownRun, index: RunIndex, by: Sequence[str]) -> Evaluation:
    """Return the tables of an evaluation, complete or not. Raises ConfigError for a wrong tag."""
    with index.cursor() as cursor:
        losses = lost_attempts(cursor.execute("SELECT task, outcome FROM episodes").fetchall())
    report = evaluation_report(eval_rows(index), by, losses)
    return Evaluation(
        run=run.id,
        complete=run.layout.eval_json.exists(),
        rows=[_table_row(row) for row in report.rows],
        outcomes=dict(report.summary.outcomes),
        failures=dict(Counter(dict(report.summary.failures)).most_common(20)),
        notes=[*_unread(index), *report.notes],
    )


def _unread(index: RunIndex) -> list[str]:
    """Say that the figures are over a part of what is stored, while the details are read."""
    found = index.coverage
    if found.complete:
        return []
    return [f"over the {found.details} of {found.episodes} episodes that have been read so far"]


@dataclass(frozen=True, slots=True)
class Compared:
    """A side of a comparison."""

    run: KnownRun
    index: RunIndex


def comparison_of(sides: Sequence[Compared], by: Sequence[str]) -> Compare:
    """Compare evaluations on the tasks they share. Raises ConfigError where they share none."""
    rows = {side.run.id: eval_rows(side.index) for side in sides}
    names = _names(sides)
    found = compare([Side(names[id_], (rows[id_],)) for id_ in rows], by)
    flips, counts = _flips(sides[0], sides[1])
    return Compare(
        sides=[
            CompareSide(
                run=side.run.id, name=score.name, tasks=score.tasks[0],
                samples=score.samples[0], score=_estimate(score.score),
            )
            for side, score in zip(sides, found.sides, strict=True)
        ],
        shared=found.shared[0],
        rows=[
            PairedRow(
                by=row.by, value=row.value, first=row.first, second=row.second, tasks=row.tasks,
                first_score=row.first_score, second_score=row.second_score,
                difference=row.difference.mean, stderr=row.difference.stderr,
                low=row.difference.low, high=row.difference.high, p=row.difference.p,
                p_holm=row.p_holm,
            )
            for row in found.rows
        ],
        flips=flips[:_MOST_FLIPS],
        won=counts[1],
        lost=counts[-1],
        tied=counts[0],
        notes=list(found.notes),
    )  # fmt: skip


def _names(sides: Sequence[Compared]) -> dict[str, str]:
    """Return a name for each side: its folder's, or its id where two folders have one name."""
    counted = Counter(side.run.layout.root.name for side in sides)
    return {
        side.run.id: side.run.layout.root.name
        if counted[side.run.layout.root.name] == 1
        else side.run.id
        for side in sides
    }


def _flips(first: Compared, second: Compared) -> tuple[list[Flip], Counter[int]]:
    """Return the tasks on which the scores differ, and how many were won (1), lost or tied."""
    left, right = task_scores(first.index), task_scores(second.index)
    counts: Counter[int] = Counter()
    flips: list[Flip] = []
    for key in sorted(left.keys() & right.keys()):
        one, other = left[key], right[key]
        change = other.score - one.score
        sign = (change > 0) - (change < 0)
        counts[sign] += 1
        if sign:
            flips.append(_flip(one, other, won=sign > 0))
    flips.sort(key=lambda flip: -abs(flip.second_score - flip.first_score))
    return flips, counts


def _flip(one: TaskScore, other: TaskScore, *, won: bool) -> Flip:
    """Show of each side an episode that is typical for the change: its worst and its best."""
    return Flip(
        task=one.task,
        question=one.question,
        first_score=one.score,
        second_score=other.score,
        first_episode=one.worst if won else one.best,
        second_episode=other.best if won else other.worst,
        verdict="won" if won else "lost",
    )


def _table_row(row: ReportRow) -> EvalTableRow:
    name = quoted(row.value)
    chosen = f"split={name}" if row.by == "split" else f"tag({quoted(row.by)})={name}"
    plain = "*" not in row.by  # rows of pairs of tags have no single one
    return EvalTableRow(
        by=row.by,
        value=row.value,
        tasks=row.tasks,
        samples=row.samples,
        lost=row.lost,
        pass_at_k={str(k): _estimate(found) for k, found in row.pass_at_k.items()},
        majority=_estimate(row.majority) if row.majority else None,
        trial_calls=_estimate(row.trial_calls),
        tool_error_rate=_estimate(row.tool_error_rate),
        malformed_rate=_estimate(row.malformed_rate),
        tokens=_estimate(row.tokens),
        filter=chosen if plain and row.by != "all" else "",
    )


def _estimate(found: ClusteredEstimate) -> Estimate:
    return Estimate(
        value=found.value,
        stderr=found.stderr,
        low=found.low,
        high=found.high,
        clusters=cast(int, found.clusters),
    )
