"""Groups that are dropped and replaced: counted by reason, and bounded whatever the reason."""

from collections import Counter
from collections.abc import Mapping

from envs.errors import ConfigError, InfraError
from rollout.store.ledger_state import DropReason

_SHOWN = 3
_ADVICE: Mapping[DropReason, str] = {
    DropReason.PROMPT_TOO_LONG: "raise model.max_model_len, or shorten the tasks or their tools",
    DropReason.STALE: "raise rollouts.max_staleness, or lower rollouts.groups_per_step",
    DropReason.INFRA_FAILED: "see the errors of its episodes (trialrun episodes RUN), then resume",
    DropReason.DEADLINE: "raise the seconds of the budgets, or find what is slow, then resume",
    DropReason.ZERO_VARIANCE: "tasks that are neither always nor never solved have a gradient",
    DropReason.NO_POLICY_TOKENS: "see why its episodes sample nothing (trialrun episodes RUN)",
}
"""What to do about drops for a reason."""


class GroupDrops:
    """Counts dropped groups between two steps; one more than `limit` ends the run."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: Counter[DropReason] = Counter()
        self._skipped: Counter[str] = Counter()
        self._example = ""

    def add(self, reason: DropReason, task: str, error: str = "") -> None:
        """Count a group of `task`. Raises ConfigError or InfraError, which name every reason with
        its count, beyond the limit; `error` is an example of what went wrong.
        """
        self._counts[reason] += 1
        self._example = error or self._example
        if reason is DropReason.PROMPT_TOO_LONG:
            self._skipped[task] += 1
        if self._counts.total() > self._limit:
            raise self.error(
                f"one step dropped more than {self._limit} groups (rollouts.max_drops_per_group)"
            )

    def error(self, what: str) -> ConfigError | InfraError:
        """Return the error that too many groups were dropped; `what` is the start of its text."""
        counts = ", ".join(f"{count} x {reason}" for reason, count in self._counts.most_common())
        advice = "; ".join(
            f"{reason}: {_ADVICE[reason]}"
            for reason, _ in self._counts.most_common()
            if reason in _ADVICE
        )
        example = f" The last error: {self._example}." if self._example else ""
        kind = ConfigError if set(self._counts) == {DropReason.PROMPT_TOO_LONG} else InfraError
        return kind(f"{what}: {counts}.{example} {advice}")

    def end_step(self) -> None:
        """Start counting anew: a step has its groups."""
        self._counts.clear()

    def take_skipped(self) -> str:
        """Return a line about tasks that were skipped since the last call; empty if none were."""
        line, self._skipped = skipped_tasks(self._skipped), Counter()
        return line


def skipped_tasks(tasks: Mapping[str, int]) -> str:
    """Return a line about groups, by task, whose prompt has no room; empty if there are none."""
    if not tasks:
        return ""
    names = ", ".join(list(tasks)[:_SHOWN]) + (", ..." if len(tasks) > _SHOWN else "")
    return (
        f"skipped {len(tasks)} tasks whose prompt leaves no room in model.max_model_len ({names}): "
        f"{_ADVICE[DropReason.PROMPT_TOO_LONG]}"
    )
