"""Summary statistics of a list of episodes; pure functions without clock or files."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import cast

from envs.seeds import stable_hash
from envs.tools import AnswerStatus, JsonObject
from rollout.episode import Episode, Outcome
from rollout.evaluation.intervals import Method
from rollout.evaluation.statistics import busy_seconds, mean_estimate

ANSWER_PART = "answer"
"""Reward part that scores the answer, without penalties and costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRow:
    """The fields of one episode that a summary uses; small, so that episodes need not be stored."""

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
    """Invalid turns by kind."""
    sampled_tokens: int
    started_at: float
    ended_at: float
    """Unix seconds, like `started_at`."""
    answer: str = ""
    split: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    question: int = 0
    """Hash of the question; distinguishes tasks that share an id."""

    @property
    def score(self) -> float:
        """The reward part `answer`; 0 for an episode that ended without an answer."""
        return self.parts.get(ANSWER_PART, 0.0)

    @property
    def counts(self) -> bool:
        """Whether the episode is evidence about the policy.

        That is: the policy caused its outcome, and its score is a finite number.
        """
        return self.outcome.counts and math.isfinite(self.score)

    @property
    def calls(self) -> int:
        """Tool calls of both phases."""
        return self.trial_calls + self.execution_calls

    @classmethod
    def of(cls, episode: Episode) -> "EvalRow":
        """Return the row of an episode."""
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
            answer=episode.answer,
            split=episode.split,
            tags=dict(episode.tags),
            question=stable_hash(episode.question),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSummary:
    """Statistics of an evaluation; a ratio without a denominator is None.

    Accuracy, parts, calls and rates are over the episodes that count, because an infrastructure
    failure says nothing about the policy. `episodes`, `outcomes` and the token figures are over
    all episodes.
    """

    tasks: int
    """Distinct tasks."""
    episodes: int
    counted: int
    """Number of episodes that count (see `EvalRow.counts`)."""
    accuracy: float | None
    """Mean of the reward part `answer`: over the samples of each task, then over tasks."""
    stderr: float | None
    """Standard error of `accuracy` over tasks; None with fewer than two counted tasks."""
    accuracy_low: float | None
    """Lower end of the 95 % interval of `accuracy` over tasks; None where there is none."""
    accuracy_high: float | None
    accuracy_method: Method
    """How the interval was computed; see `rollout.evaluation.intervals`."""
    outcomes: Mapping[str, int]
    failures: Mapping[str, int]
    """Error texts of the episodes that do not count."""
    parts: Mapping[str, float]
    """Mean of every reward part, over the counted episodes that have it."""
    calls_per_episode: float | None
    """Tool calls of both phases."""
    trial_calls_per_episode: float | None
    tool_error_rate: float | None
    """Share of calls that ended in a tool error or a timeout."""
    malformed_rate: float | None
    """Share of the policy's turns that were invalid."""
    policy_errors: Mapping[str, int]
    """Invalid turns by kind."""
    sampled_tokens: int
    wall_s: float
    """Seconds during which at least one episode ran; its accuracy depends on how well the workers'
    clocks agree.
    """
    tokens_per_s: float | None
    """Sampled tokens per second of `wall_s`, without tokens of prompts and observations."""

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return cast(JsonObject, asdict(self))


def summarise(episodes: Iterable[Episode | EvalRow]) -> EvalSummary:
    """Summarise any number of episodes, also none."""
    rows = [row if isinstance(row, EvalRow) else EvalRow.of(row) for row in episodes]
    counted = [row for row in rows if row.counts]
    lost = Counter(row.error or _lost_as(row) for row in rows if not row.counts)
    faults: Counter[str] = Counter()
    for row in counted:
        faults.update(row.policy_errors)
    calls = sum(row.calls for row in counted)
    tokens = sum(row.sampled_tokens for row in rows)
    wall_s = busy_seconds([(row.started_at, row.ended_at) for row in rows])
    accuracy = mean_estimate([sum(s) / len(s) for s in scores_by_task(counted).values()])
    return EvalSummary(
        tasks=len({row.task for row in rows}),
        episodes=len(rows),
        counted=len(counted),
        accuracy=accuracy.value,
        stderr=accuracy.stderr,
        accuracy_low=accuracy.low,
        accuracy_high=accuracy.high,
        accuracy_method=accuracy.method,
        outcomes=dict(Counter(row.outcome.value for row in rows)),
        failures=dict(lost),
        parts=_part_means(counted),
        calls_per_episode=_ratio(calls, len(counted)),
        trial_calls_per_episode=_ratio(sum(row.trial_calls for row in counted), len(counted)),
        tool_error_rate=_ratio(sum(row.tool_errors for row in counted), calls),
        malformed_rate=_ratio(faults.total(), sum(row.turns for row in counted)),
        policy_errors=dict(faults),
        sampled_tokens=tokens,
        wall_s=wall_s,
        tokens_per_s=_ratio(tokens, wall_s),
    )


def scores_by_task(rows: Iterable[EvalRow]) -> dict[str, list[float]]:
    """Return the scores of the rows that count, by task."""
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.counts:
            scores[row.task].append(row.score)
    return dict(scores)


def _lost_as(row: EvalRow) -> str:
    return "score is not a number" if row.outcome.counts else row.outcome.value


def _part_means(rows: Sequence[EvalRow]) -> dict[str, float]:
    values: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.parts.items():
            if math.isfinite(value):
                values[name].append(value)
    return {name: sum(part) / len(part) for name, part in values.items()}


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None
