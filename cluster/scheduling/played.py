"""Groups that were played to their end: what the metrics of a step say about the policy.

A step takes some of the groups that are played for it and drops the others: those whose rewards are
equal, those that arrive too old. What the policy can do is seen in all of them.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from envs.errors import StoreError
from learner.credit_columns import CreditColumns, read_credit_columns
from rollout.episode import Outcome
from rollout.store.ledger_state import DropReason, LedgerState, State
from rollout.store.run_reader import RunReader


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedGroup:
    """The G episodes with a reward of a group that ended; columns as in `CreditColumns`."""

    name: str
    reason: DropReason | None
    """Why the step did not take the group; None if it did."""
    rewards_G: NDArray[np.float64]
    answers_G: NDArray[np.float64]
    trial_calls_G: NDArray[np.int64]
    distinct_G: NDArray[np.int64]
    truncated_G: NDArray[np.bool_]
    """Whether the episode was cut off at a limit."""
    sampled_tokens: int
    """Tokens that the policy sampled in them."""


def played_group(
    name: str, batch: pa.RecordBatch, credit: CreditColumns, reason: DropReason | None
) -> PlayedGroup:
    """Return what `batch` (EPISODE_SCHEMA), the group's episodes, says about the policy; `credit`
    is what `read_credit_columns` reads from it.
    """
    rewards_B = batch["reward"].to_numpy(zero_copy_only=False).astype(np.float64)
    rated = np.isfinite(rewards_B)
    outcomes_B = np.asarray(batch["outcome"].to_pylist(), dtype=object)
    sampled = batch["loss_mask"].filter(pa.array(rated)).flatten()
    return PlayedGroup(
        name=name,
        reason=reason,
        rewards_G=rewards_B[rated],
        answers_G=credit.answers_B[rated],
        trial_calls_G=credit.trial_calls_B[rated],
        distinct_G=credit.distinct_B[rated],
        truncated_G=outcomes_B[rated] == Outcome.TRUNCATED.value,
        sampled_tokens=int(np.count_nonzero(sampled.to_numpy(zero_copy_only=False))),
    )


class LeftGroups:
    """Groups by the step that played them and did not take them."""

    def __init__(self, groups: Iterable[tuple[int, PlayedGroup]] = ()) -> None:
        self._by_step: dict[int, dict[str, PlayedGroup]] = defaultdict(dict)
        for step, group in groups:
            self.add(step, group)

    def add(self, step: int, group: PlayedGroup) -> None:
        """Note a group; one that is noted again, as after a resume, counts once."""
        self._by_step[step][group.name] = group

    def count(self, step: int, reason: DropReason) -> int:
        """Return how many groups `step` has left for `reason` so far."""
        return sum(group.reason is reason for group in self._by_step[step].values())

    def take(self, step: int) -> list[PlayedGroup]:
        """Return the groups of `step`, and forget those of all steps until then."""
        groups = list(self._by_step[step].values())
        for done in [known for known in self._by_step if known <= step]:
            del self._by_step[done]
        return groups


def stored_left(
    reader: RunReader, ledger: LedgerState, after: int
) -> list[tuple[int, PlayedGroup]]:
    """Return the groups, with their steps, that an earlier process played for steps after `after`
    and did not take. Raises StoreError where an episode is not in the store.
    """
    wanted = {
        (entry.lease.episode, entry.lease.attempt): entry
        for entry in ledger.entries.values()
        if entry.state is State.DROPPED
        and entry.collected_for is not None
        and entry.collected_for > after
    }
    rows = {(row.episode, row.attempt): row for row in reader.episodes()} if wanted else {}
    lost = sorted(key[0] for key in wanted.keys() - rows.keys())
    if lost:
        raise StoreError(
            f"expected the {len(wanted)} episodes of dropped groups that the metrics of steps "
            f"after {after} count, {len(lost)} are missing, such as {lost[0]}: restore the folder "
            "episodes/ of the run directory"
        )
    members: dict[tuple[int, str], list[tuple[str, int]]] = defaultdict(list)
    for key, entry in wanted.items():
        assert entry.collected_for is not None
        members[entry.collected_for, entry.lease.group].append(key)
    found: list[tuple[int, PlayedGroup]] = []
    for (step, name), keys in members.items():
        batch = reader.batch([rows[key] for key in keys])
        credit = read_credit_columns(batch)
        found.append((step, played_group(name, batch, credit, wanted[keys[0]].reason)))
    return found
