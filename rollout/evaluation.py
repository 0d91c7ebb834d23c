"""What a list of episodes says about a policy: pure numbers, no clock and no files."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

from envs.tools import AnswerStatus, JsonObject
from rollout.episode import Episode, Outcome

ANSWER_PART = "answer"
"""Reward part that says whether the answer was right, penalties and costs left out."""


@dataclass(frozen=True, slots=True)
class EvalRow:
    """What a summary needs of one episode; small, so that episodes need not be kept."""

    task: str
    outcome: Outcome
    error: str
    parts: Mapping[str, float]
    trial_calls: int
    execution_calls: int
    tool_errors: int
    """Calls that ended in a tool error or a timeout."""
    turns: int
    policy_errors: Mapping[str, int]
    """Faulty turns by kind."""
    sampled_tokens: int
    started_at: float
    ended_at: float
    """Unix seconds, as `started_at`."""

    @classmethod
    def of(cls, episode: Episode) -> "EvalRow":
        """Narrow an episode down to its row."""
        calls = episode.calls
        faults = Counter(turn.policy_error for turn in episode.turns if turn.policy_error)
        failed = (AnswerStatus.TOOL_ERROR, AnswerStatus.TIMEOUT)
        return cls(
            task=episode.lease.task,
            outcome=episode.outcome,
            error=episode.error,
            parts=dict(episode.reward_parts),
            trial_calls=sum(call.purpose == "trial" for call in calls),
            execution_calls=sum(call.purpose == "execution" for call in calls),
            tool_errors=sum(call.status in failed for call in calls),
            turns=len(episode.turns),
            policy_errors=dict(faults),
            sampled_tokens=sum(episode.loss_mask_T),
            started_at=episode.timings.started_at,
            ended_at=episode.timings.started_at + episode.timings.wall_s,
        )


@dataclass(frozen=True, slots=True)
class EvalSummary:
    """Statistics of an evaluation; a ratio without a denominator is None.

    Accuracy, parts, calls and rates are over the episodes that count: a failure of the world says
    nothing about the policy. `episodes`, `outcomes` and the token figures are over all of them.
    """

    tasks: int
    """Distinct tasks."""
    episodes: int
    counted: int
    """Episodes whose outcome is the policy's own."""
    accuracy: float | None
    """Mean of the reward part `answer`."""
    stderr: float | None
    """Standard error of `accuracy`, clustered by task; None with fewer than two counted tasks."""
    outcomes: Mapping[str, int]
    failures: Mapping[str, int]
    """Error texts of the episodes that do not count."""
    parts: Mapping[str, float]
    """Mean of every reward part, over the counted episodes that carry it."""
    calls_per_episode: float | None
    """Tool calls of both phases."""
    trial_calls_per_episode: float | None
    tool_error_rate: float | None
    """Share of calls that ended in a tool error or a timeout."""
    malformed_rate: float | None
    """Share of the policy's turns that could not be acted on."""
    policy_errors: Mapping[str, int]
    """Those turns by kind."""
    sampled_tokens: int
    wall_s: float
    """Seconds that the evaluation took."""
    tokens_per_s: float | None
    """Sampled tokens over `wall_s`; tokens of prompts and observations are left out."""

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return cast(JsonObject, asdict(self))


def summarise(episodes: Iterable[Episode | EvalRow], wall_s: float | None = None) -> EvalSummary:
    """Summarise any number of episodes, none included.

    `wall_s` is how long the evaluation took; None takes the span that the episodes record, which is
    only as good as the agreement of their workers' clocks.
    """
    rows = [row if isinstance(row, EvalRow) else EvalRow.of(row) for row in episodes]
    counted = [row for row in rows if row.outcome.counts]
    lost = Counter(row.error or row.outcome.value for row in rows if not row.outcome.counts)
    faults: Counter[str] = Counter()
    for row in counted:
        faults.update(row.policy_errors)
    trial_calls = sum(row.trial_calls for row in counted)
    calls = trial_calls + sum(row.execution_calls for row in counted)
    tokens = sum(row.sampled_tokens for row in rows)
    if wall_s is None:
        wall_s = max((row.ended_at for row in rows), default=0.0) - min(
            (row.started_at for row in rows), default=0.0
        )
    return EvalSummary(
        tasks=len({row.task for row in rows}),
        episodes=len(rows),
        counted=len(counted),
        accuracy=_ratio(sum(_right(row) for row in counted), len(counted)),
        stderr=clustered_stderr([(row.task, _right(row)) for row in counted]),
        outcomes=dict(Counter(row.outcome.value for row in rows)),
        failures=dict(lost),
        parts=_part_means(counted),
        calls_per_episode=_ratio(calls, len(counted)),
        trial_calls_per_episode=_ratio(trial_calls, len(counted)),
        tool_error_rate=_ratio(sum(row.tool_errors for row in counted), calls),
        malformed_rate=_ratio(faults.total(), sum(row.turns for row in counted)),
        policy_errors=dict(faults),
        sampled_tokens=tokens,
        wall_s=wall_s,
        tokens_per_s=_ratio(tokens, wall_s),
    )


def clustered_stderr(scores: Sequence[tuple[str, float]]) -> float | None:
    """Return the standard error of the mean of `(cluster, score)` pairs; None below two clusters.

    Scores of one cluster may correlate: the residuals are added up within a cluster before they are
    squared (Miller, "Adding Error Bars to Evals", arXiv 2411.00640, section 2.2), times G/(G-1) for
    G clusters, so that clusters of one score each give the usual s / sqrt(n).
    """
    mean = sum(score for _, score in scores) / max(len(scores), 1)
    residuals: defaultdict[str, float] = defaultdict(float)
    for cluster, score in scores:
        residuals[cluster] += score - mean
    clusters = len(residuals)
    if clusters < 2:
        return None
    squares = sum(residual**2 for residual in residuals.values())
    return math.sqrt(squares * clusters / (clusters - 1)) / len(scores)


def _right(row: EvalRow) -> float:
    return row.parts.get(ANSWER_PART, 0.0)


def _part_means(rows: Sequence[EvalRow]) -> dict[str, float]:
    values: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.parts.items():
            values[name].append(value)
    return {name: sum(part) / len(part) for name, part in values.items()}


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None
