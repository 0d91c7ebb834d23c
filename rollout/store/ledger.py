"""The ledger: a durable record in which every scheduled episode ends in exactly one state.

It is a journal of events (`ledger/events.jsonl`, see `ledger_state`). An event counts once its line
is complete; a line that a kill left incomplete is ignored. A run trains no group twice and loses
none if it follows these rules:

1. An episode is stored in the run directory before it is finished here.
2. `train(step, ...)` is recorded before the checkpoint of `step` becomes visible. A kill between
   the two rolls the step back; in the other order the step would be trained twice.
3. On resume, `RunDirectory.recover` does two things. `roll_back(step of the checkpoint)` makes the
   groups of later steps ready again: complete groups, because the learner also compares with
   episodes that it leaves out, and with the step that they were given to. `reconcile` makes the
   ledger agree with the store: an open lease whose episode was stored counts as finished, and a
   finished episode that did not reach the disk is leased again.
4. Then `ready_groups()` are trained in that order, and `open_leases()` are leased again one by
   one; the finished samples of a group in progress are kept.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from envs.errors import StoreError
from rollout.episode import Lease
from rollout.store.journal import Journal, whole_lines
from rollout.store.ledger_state import (
    Dropped,
    DropReason,
    Entry,
    Finished,
    Leased,
    LedgerEvent,
    LedgerState,
    ReLeased,
    ReLeaseReason,
    RolledBack,
    Sample,
    State,
    Trained,
)
from rollout.store.line_checks import LineChecks
from rollout.store.writes import Writes

_EVENT: TypeAdapter[LedgerEvent] = TypeAdapter(LedgerEvent)


class LedgerReader:
    """Follows a ledger that another process may be writing."""

    def __init__(self, path: Path, state: LedgerState | None = None) -> None:
        self._path = path
        self._read = 0
        self._checks = LineChecks(path)
        self._state = LedgerState() if state is None else state

    def refresh(self) -> LedgerState:
        """Return the state after all events so far; empty if there is no ledger.

        Raises StoreError naming a line that cannot be read or contradicts an earlier one.
        """
        for line in whole_lines(self._path, self._read).splitlines(keepends=True):
            content = self._checks.plain(line)
            try:
                self._state.apply(_EVENT.validate_json(content))
            except (ValidationError, StoreError) as error:
                place = f"{self._path}:{self._checks.lines}"
                self._checks.lines -= 1  # the next call comes back to it
                raise StoreError(f"{place}: expected a ledger event, found {error}") from error
            self._read += len(line)
        return self._state


class Ledger(LedgerState):
    """The ledger as its one writer sees it.

    Every method adds its event to `writes` before it returns; without them it is written at once.
    """

    def __init__(self, path: Path, writes: Writes | None = None) -> None:
        super().__init__()
        self._writes = writes or Writes(path)
        self._path = path
        self._journal = Journal(path)
        LedgerReader(path, self).refresh()
        self._own: set[str] = set()
        """Groups that this process leased and has not archived."""
        self._settled: set[str] = set()
        """Those that were settled when `archive_settled` was last called."""

    def lease(self, leases: Sequence[Lease]) -> None:
        """Schedule a whole group. Raises StoreError for a group or an episode known before."""
        groups = {
            (lease.run, lease.kind, lease.group, lease.group_number, lease.task) for lease in leases
        }
        if len(groups) != 1:
            raise StoreError(f"expected leases of one group of one task, found {sorted(groups)}")
        run, kind, group, number, task = groups.pop()
        samples = tuple(Sample.model_validate(lease, from_attributes=True) for lease in leases)
        self._record(
            Leased(run=run, kind=kind, group=group, group_number=number, task=task, samples=samples)
        )
        self._own.add(group)

    def re_lease(
        self, episode: str, why: str, reason: ReLeaseReason | None = None, kept_turns: int = 0
    ) -> Lease:
        """Schedule `episode` again: the new lease has the same seed and the next attempt, which
        goes on from `kept_turns` finished turns of the one before.
        """
        attempt = self.entries[episode].lease.attempt + 1 if episode in self.entries else 0
        self._record(
            ReLeased(
                episode=episode, attempt=attempt, why=why, reason=reason, kept_turns=kept_turns
            )
        )
        return self.entries[episode].lease

    def finish(self, lease: Lease) -> None:
        """Record a stored episode that counts. Raises StoreError unless `accepts(lease)`."""
        self._record(Finished(episode=lease.episode, attempt=lease.attempt))

    def train(self, step: int, episodes: Sequence[str]) -> None:
        """Record that `step` trained on `episodes`. Raises StoreError unless all are finished."""
        self._record(Trained(step=step, episodes=tuple(episodes)))

    def drop(
        self,
        episodes: Sequence[str],
        reason: DropReason,
        step: int | None = None,
        collected_for: int | None = None,
    ) -> None:
        """Record that `episodes` are not trained on.

        With `step`, the learner of that step left them out, and a roll-back of the step makes them
        ready again; without it they are dropped for good. `collected_for` is the step that played
        their group and dropped it before the learner. Raises StoreError for an episode that has
        already ended.
        """
        self._record(
            Dropped(reason=reason, episodes=tuple(episodes), step=step, collected_for=collected_for)
        )

    def roll_back(self, step: int) -> None:
        """Make episodes that were trained on, or left out, after `step` ready again."""
        if self._archived:
            self._writes.flush()
            self._forget_all()
            self._own, self._settled = set(), set()
            LedgerReader(self._path, self).refresh()
        self._record(RolledBack(step=step))

    def reconcile(self, stored: Mapping[str, Mapping[int, bool]]) -> None:
        """Make the ledger agree with the store (rule 3 above).

        `stored[episode][attempt]` is whether that stored episode counts (its outcome has a reward).
        """
        for entry in list(self.entries.values()):
            self._reconcile(entry, stored.get(entry.lease.episode, {}))

    def archive_settled(self) -> None:
        """Archive what was settled at the last call already, so that memory does not grow with
        every step: who settles a group may still look at it for a while.

        Groups of an earlier process stay: a resumed run asks for those of steps yet to come.
        """
        for group in self._settled:
            self.archive(group)
        self._own -= self._settled
        self._settled = {group for group in self._own if self.is_settled(group)}

    def sync(self) -> None:
        """Force the ledger to the disk."""
        self._journal.sync()

    def close(self) -> None:
        self._journal.close()

    def _reconcile(self, entry: Entry, counts: Mapping[int, bool]) -> None:
        lease = entry.lease
        if entry.state is State.LEASED and counts.get(lease.attempt, False):
            self.finish(lease)
        elif entry.state is State.FINISHED and lease.attempt not in counts:
            self.re_lease(
                lease.episode, "its episode is not in the store", ReLeaseReason.NOT_STORED
            )

    def _record(self, event: LedgerEvent) -> None:
        line = event.model_dump_json()
        what = f"the ledger event {line[:120]}"
        self.apply(event, lambda: self._writes.add(partial(self._journal.append, [line], what)))
