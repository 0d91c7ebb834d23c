"""Attempts without a reward, by task: the infrastructure failed, or the time was up.

Such an attempt is no evidence about the policy and is run again. A tool that could bring it about
on purpose would have wrong answers taken back, so that a task whose attempts are lost far more
often than those of others is named.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rollout.episode import Outcome

_LOST = (Outcome.INFRA_FAILED, Outcome.DEADLINE)
_ENDED = (*_LOST, Outcome.ANSWERED, Outcome.TRUNCATED, Outcome.POLICY_ERROR)
_CHANCE = 0.001
"""Chance, over all tasks together, with which equal tasks would have one that is named."""
_FEWEST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLosses:
    """Attempts at one task."""

    task: str
    lost: int
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAttempts:
    """Attempts of a run that ended without a reward."""

    lost: int
    attempts: int
    suspects: tuple[TaskLosses, ...]
    """Tasks whose share is far above that of all others, the most lost first."""

    def notes(self) -> list[str]:
        """Return what a reader of the run's figures needs to know of it."""
        if not self.lost:
            return []
        notes = [
            f"{self.lost} of {self.attempts} attempts failed because of the infrastructure or ran "
            "out of time; they were run again as far as the recipe allows"
        ]
        if self.suspects:
            named = ", ".join(
                f"{task.task} ({task.lost} of {task.attempts})" for task in self.suspects[:4]
            )
            more = f" and {len(self.suspects) - 4} more" if len(self.suspects) > 4 else ""
            notes.append(
                f"far more attempts than elsewhere are lost at: {named}{more}. See why with "
                "`trialrun episodes --outcome infra_failed`: tools that fail only on wrong answers "
                "raise the score"
            )
        return notes


def lost_attempts(ended: Iterable[tuple[str, str]]) -> LostAttempts:
    """Count attempts, each given as task and outcome; an episode may have several."""
    attempts: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for task, outcome in ended:
        if outcome in _ENDED:
            attempts[task] += 1
            lost[task] += outcome in _LOST
    all_lost, all_attempts = lost.total(), attempts.total()
    suspects = [
        TaskLosses(task=task, lost=count, attempts=attempts[task])
        for task, count in lost.most_common()
        if count >= _FEWEST
        and _tail(
            count,
            attempts[task],
            (all_lost - count + 1) / (all_attempts - attempts[task] + 2),
        )
        < _CHANCE / len(attempts)
    ]
    return LostAttempts(lost=all_lost, attempts=all_attempts, suspects=tuple(suspects))


def _tail(least: int, draws: int, share: float) -> float:
    """Return the chance of `least` or more of `draws`, each with the chance `share`."""
    if share >= 1:
        return 1.0
    logs = (math.log(share), math.log1p(-share))
    ways = math.lgamma(draws + 1)
    return math.fsum(
        math.exp(
            ways
            - math.lgamma(count + 1)
            - math.lgamma(draws - count + 1)
            + count * logs[0]
            + (draws - count) * logs[1]
        )
        for count in range(least, draws + 1)
    )
