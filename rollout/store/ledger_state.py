"""The ledger's state machine: the states of a scheduled episode and the events between them.

    lease ──► LEASED ──finish──► FINISHED ──train──► TRAINED at step s
               │  ▲ │                │  ▲                │
               │  └─┘ re_lease       │  └── roll_back ───┘  (of steps after the checkpoint;
               └──── drop ──► DROPPED ◄── drop ──┘            also of episodes the learner left out)

Every event is a pydantic model; `LedgerState.apply` refuses an event that contradicts earlier ones.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from envs.errors import StoreError
from rollout.episode import Lease, RolloutKind, kind_and_number


class DropReason(StrEnum):
    """Why an episode is not trained on."""

    STALE = "stale"
    ZERO_VARIANCE = "zero_variance"
    INFRA_FAILED = "infra_failed"
    DEADLINE = "deadline"
    OVERLONG = "overlong"
    CANCELLED = "cancelled"
    PROMPT_TOO_LONG = "prompt_too_long"
    """The task's prompt leaves no room to answer; nothing was sampled."""
    TRUNCATED = "truncated"
    NO_REWARD = "no_reward"
    GROUP_OF_ONE = "group_of_one"
    GREEDY = "greedy"
    NO_POLICY_TOKENS = "no_policy_tokens"
    NO_LOGPROBS = "no_logprobs"
    """The policy sampled nothing: the episode is a teacher's."""
    BAD_LOGPROBS = "bad_logprobs"
    """A behaviour logprob is infinite or positive."""
    NON_FINITE = "non_finite"
    """The learner's logits, loss or gradient in its step was not finite."""
    SURPLUS = "surplus"
    """The run ended before it used the episode."""
    EVALUATED = "evaluated"
    """Sampled for an evaluation."""
    COLLECTED = "collected"
    """Collected as SFT data, which a separate run trains on."""


class ReLeaseReason(StrEnum):
    """Why an episode was scheduled again."""

    WORKER_LOST = "worker_lost"
    DRAINED = "drained"
    """Its worker was to end, and it was not finished in time."""
    FAILED = "failed"
    """A failure that is not the policy's ended the attempt."""
    NOT_REPLAYED = "not_replayed"
    """Its finished turns could not be continued, because its tools answered otherwise when their
    calls were replayed; it starts anew.
    """
    RESUMED = "resumed"
    """The run was left and resumed."""
    NOT_STORED = "not_stored"
    """Its episode is not in the store."""


class State(StrEnum):
    """State of an episode in the ledger."""

    LEASED = "leased"
    FINISHED = "finished"
    TRAINED = "trained"
    DROPPED = "dropped"


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sample(_Event):
    """One episode of a group when it is leased."""

    episode: str
    sample_index: int
    attempt: int
    seed: int


class Leased(_Event):
    """A complete group was scheduled, in one event, so that no group is scheduled in part."""

    event: Literal["leased"] = "leased"
    run: str
    group: str
    kind: RolloutKind | None = None
    """None in ledgers that have only the group's name: it is derived from that."""
    group_number: int | None = None
    task: str
    samples: tuple[Sample, ...] = Field(min_length=1)


class ReLeased(_Event):
    """An episode was scheduled again as `attempt`; results of earlier attempts are refused."""

    event: Literal["re_leased"] = "re_leased"
    episode: str
    attempt: int
    why: str
    reason: ReLeaseReason | None = None
    """None in older ledgers, which have only the words."""
    kept_turns: int = 0
    """Finished turns of the attempt before that this one goes on from; 0 starts the episode anew.
    """


class Finished(_Event):
    event: Literal["finished"] = "finished"
    episode: str
    attempt: int


class Trained(_Event):
    event: Literal["trained"] = "trained"
    step: int
    episodes: tuple[str, ...]


class Dropped(_Event):
    event: Literal["dropped"] = "dropped"
    reason: DropReason
    episodes: tuple[str, ...]
    step: int | None = None
    """Step whose learner left them out; None for episodes that no learner received."""
    collected_for: int | None = None
    """Step that played their group to its end and did not take it; it counts in the step's metrics,
    also after a resume."""


class RolledBack(_Event):
    """Training returned to the checkpoint of `step`; later training and omissions are undone."""

    event: Literal["rolled_back"] = "rolled_back"
    step: int


LedgerEvent = Annotated[
    Leased | ReLeased | Finished | Trained | Dropped | RolledBack, Field(discriminator="event")
]


@dataclass(frozen=True, slots=True)
class Entry:
    """State of one episode in the ledger."""

    lease: Lease
    state: State
    order: int
    """Position among all changes of any episode, for sorting; a roll-back does not change it."""
    step: int | None = None
    """Step that trained on it or left it out, also after that step was rolled back."""
    reason: DropReason | None = None
    collected_for: int | None = None
    """Step that played the episode's group to its end and dropped the group; a roll-back does not
    change it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyGroup:
    """A group that is ready for training: none of its episodes is still open."""

    group: str
    task: str
    episodes: tuple[str, ...]
    """The finished ones, sorted by sample index, without dropped ones."""
    planned_step: int | None
    """Step that had the group before a roll-back; the resumed run trains it there again."""


@dataclass(frozen=True, slots=True)
class LedgerAudit:
    """Episodes by state, dropped ones by reason, and violations."""

    states: Mapping[State, int]
    reasons: Mapping[DropReason, int]
    re_leases: int
    violations: tuple[str, ...]
    """Open leases, and groups that were trained only in part."""


class LedgerState:
    """All scheduled episodes and their states; only events change it."""

    def __init__(self) -> None:
        self._forget_all()

    def _forget_all(self) -> None:
        self.entries: dict[str, Entry] = {}
        """By episode, without those of archived groups."""
        self.groups: dict[str, list[str]] = {}
        """Episodes by group, without archived groups."""
        self._archived: set[str] = set()
        self._archived_states: Counter[State] = Counter()
        self._archived_reasons: Counter[DropReason] = Counter()
        self.last_step = -1
        self._order = 0
        self._re_leases = 0

    def apply(self, event: LedgerEvent, record: Callable[[], None] = lambda: None) -> None:
        """Check `event`, call `record`, then apply the event; an error changes nothing."""
        changed = self._changes(event)
        record()
        self._order += len(changed)
        self.entries |= {entry.lease.episode: entry for entry in changed}
        match event:
            case Leased():
                self.groups[event.group] = [sample.episode for sample in event.samples]
            case ReLeased():
                self._re_leases += 1
            case Trained():
                self.last_step = event.step
            case RolledBack():
                self.last_step = min(self.last_step, event.step)

    def ready_groups(self) -> list[ReadyGroup]:
        """Return the groups to train: rolled-back ones in their old order, then by completion."""
        ready: list[tuple[tuple[float, int], ReadyGroup]] = []
        for group, episodes in self.groups.items():
            entries = [self.entries[episode] for episode in episodes]
            finished = [entry for entry in entries if entry.state is State.FINISHED]
            if not finished or any(e.state in (State.LEASED, State.TRAINED) for e in entries):
                continue
            step = next((entry.step for entry in finished if entry.step is not None), None)
            finished.sort(key=lambda entry: entry.lease.sample_index)
            ids = tuple(entry.lease.episode for entry in finished)
            order = max(entry.order for entry in entries)
            key = (math.inf if step is None else step, order)
            task = finished[0].lease.task
            ready.append((key, ReadyGroup(group=group, task=task, episodes=ids, planned_step=step)))
        return [group for _, group in sorted(ready, key=lambda pair: pair[0])]

    def open_leases(self) -> list[Lease]:
        """Return the leases of episodes that have not ended, with their current attempts."""
        return [entry.lease for entry in self.entries.values() if entry.state is State.LEASED]

    def is_known(self, group: str) -> bool:
        """Whether `group` was ever leased."""
        return group in self.groups or group in self._archived

    def is_settled(self, group: str) -> bool:
        """Whether nothing will happen to `group` unless the run is rolled back."""
        ended = (State.TRAINED, State.DROPPED)
        return all(self.entries[episode].state in ended for episode in self.groups[group])

    def archive(self, group: str) -> None:
        """Keep no more of a settled group than its name and its part in the counts of `audit`.

        To roll it back, it must be read from the file again.
        """
        for episode in self.groups.pop(group):
            entry = self.entries.pop(episode)
            self._archived_states[entry.state] += 1
            if entry.reason is not None:
                self._archived_reasons[entry.reason] += 1
        self._archived.add(group)

    def accepts(self, lease: Lease) -> bool:
        """Whether a result for `lease` is accepted: it is open and of the current attempt."""
        entry = self.entries.get(lease.episode)
        return (
            entry is not None
            and entry.state is State.LEASED
            and entry.lease.attempt == lease.attempt
        )

    def audit(self) -> LedgerAudit:
        """Count episodes by state, and list open leases and partly trained groups."""
        violations = [
            f"episode {lease.episode}: leased (attempt {lease.attempt}) and not ended"
            for lease in self.open_leases()
        ]
        for group, episodes in self.groups.items():
            states = [self.entries[episode].state for episode in episodes]
            if State.TRAINED in states and State.FINISHED in states:
                violations.append(
                    f"group {group}: {states.count(State.FINISHED)} finished episodes were not "
                    "trained on with the others"
                )
        entries = self.entries.values()
        states = self._archived_states + Counter(entry.state for entry in entries)
        reasons = self._archived_reasons + Counter(
            entry.reason for entry in entries if entry.reason is not None
        )
        return LedgerAudit(
            {state: states[state] for state in State}, reasons, self._re_leases, tuple(violations)
        )

    def _changes(self, event: LedgerEvent) -> list[Entry]:
        match event:
            case Leased():
                return self._leased(event)
            case ReLeased():
                entry = self._entry(event.episode, State.LEASED, State.FINISHED)
                lease = replace(entry.lease, attempt=event.attempt)
                if event.attempt <= entry.lease.attempt:
                    raise StoreError(
                        f"episode {event.episode}: expected an attempt after "
                        f"{entry.lease.attempt}, found {event.attempt}"
                    )
                return [replace(entry, lease=lease, state=State.LEASED)]
            case Finished():
                entry = self._entry(event.episode, State.LEASED)
                if event.attempt != entry.lease.attempt:
                    raise StoreError(
                        f"episode {event.episode}: expected attempt {entry.lease.attempt} to "
                        f"finish, found attempt {event.attempt}: it was leased again since"
                    )
                return [replace(entry, state=State.FINISHED, order=self._order)]
            case Trained():
                return self._trained(event)
            case Dropped():
                changed = self._moved(event.episodes, State.DROPPED, State.LEASED, State.FINISHED)
                return [
                    replace(
                        entry,
                        reason=event.reason,
                        step=event.step,
                        collected_for=event.collected_for,
                    )
                    for entry in changed
                ]
            case RolledBack():
                return [
                    replace(entry, state=State.FINISHED, reason=None)
                    for entry in self.entries.values()
                    if entry.step is not None
                    and entry.state in (State.TRAINED, State.DROPPED)
                    and entry.step > event.step
                ]

    def _leased(self, event: Leased) -> list[Entry]:
        if self.is_known(event.group):
            raise StoreError(
                f"expected a new group, found {event.group}, which was already leased: a group is "
                "leased once and completely"
            )
        known = [sample.episode for sample in event.samples if sample.episode in self.entries]
        if known:
            raise StoreError(
                f"expected new episodes in group {event.group}, found known {known[:4]}"
            )
        kind, number = kind_and_number(event.group)
        lease = partial(
            Lease,
            run=event.run,
            kind=kind if event.kind is None else event.kind,
            group=event.group,
            group_number=number if event.group_number is None else event.group_number,
            task=event.task,
        )
        return [
            Entry(lease(**sample.model_dump()), State.LEASED, order)
            for order, sample in enumerate(event.samples, start=self._order)
        ]

    def _trained(self, event: Trained) -> list[Entry]:
        if event.step < self.last_step:
            raise StoreError(
                f"expected step {self.last_step} or later, found {event.step}: only roll_back "
                "returns to earlier steps"
            )
        changed = self._moved(event.episodes, State.TRAINED, State.FINISHED)
        return [replace(entry, step=event.step) for entry in changed]

    def _moved(self, episodes: Sequence[str], state: State, *allowed: State) -> list[Entry]:
        if len(set(episodes)) != len(episodes):
            raise StoreError(f"expected each episode once to be {state}, found {sorted(episodes)}")
        return [
            replace(self._entry(episode, *allowed), state=state, order=order)
            for order, episode in enumerate(episodes, start=self._order)
        ]

    def _entry(self, episode: str, *allowed: State) -> Entry:
        entry = self.entries.get(episode)
        if entry is None:
            raise StoreError(f"expected a leased episode, found {episode}, which was never leased")
        if entry.state not in allowed:
            found = {
                State.TRAINED: f"already trained at step {entry.step}",
                State.DROPPED: f"dropped ({entry.reason})",
            }.get(entry.state, entry.state.value)
            raise StoreError(f"episode {episode}: expected {' or '.join(allowed)}, found {found}")
        return entry
