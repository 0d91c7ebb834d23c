"""The ledger's state machine: what may happen to a scheduled episode, and in which order.

    lease ──► LEASED ──finish──► FINISHED ──train──► TRAINED at step s
               │  ▲ │                │  ▲                │
               │  └─┘ re_lease       │  └── roll_back ───┘  (of steps after the checkpoint)
               └──── drop ──► DROPPED ◄── drop ──┘            (what their learner dropped, too)

Every event is a pydantic model; `LedgerState.apply` refuses one that contradicts what went before.
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
    """Why an episode is never trained on."""

    STALE = "stale"
    ZERO_VARIANCE = "zero_variance"
    INFRA_FAILED = "infra_failed"
    DEADLINE = "deadline"
    OVERLONG = "overlong"
    CANCELLED = "cancelled"
    TRUNCATED = "truncated"
    NO_REWARD = "no_reward"
    GROUP_OF_ONE = "group_of_one"
    GREEDY = "greedy"
    NO_POLICY_TOKENS = "no_policy_tokens"
    NO_LOGPROBS = "no_logprobs"
    """Nothing was sampled: a teacher's episode."""
    BAD_LOGPROBS = "bad_logprobs"
    """A behaviour logprob is infinite or positive."""
    NON_FINITE = "non_finite"
    """The learner's logits, loss or gradient of its step was not finite."""
    SURPLUS = "surplus"
    """More was sampled than the run consumed."""
    EVALUATED = "evaluated"
    """Sampled to be measured, not trained on."""
    COLLECTED = "collected"
    """Collected as a demonstration; a separate SFT run trains on it."""


class State(StrEnum):
    """Where an episode stands."""

    LEASED = "leased"
    FINISHED = "finished"
    TRAINED = "trained"
    DROPPED = "dropped"


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sample(_Event):
    """One episode of a group as it is leased."""

    episode: str
    sample_index: int
    attempt: int
    seed: int


class Leased(_Event):
    """A whole group was scheduled; one event, so that no group is ever half scheduled."""

    event: Literal["leased"] = "leased"
    run: str
    group: str
    kind: RolloutKind | None = None
    """None in ledgers that have only the group's name: it is derived from that."""
    group_number: int | None = None
    task: str
    samples: tuple[Sample, ...] = Field(min_length=1)


class ReLeased(_Event):
    """An episode was scheduled again as `attempt`; what earlier attempts bring is refused."""

    event: Literal["re_leased"] = "re_leased"
    episode: str
    attempt: int
    why: str


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
    """Step whose learner was given them and left them out; None for what no learner saw."""


class RolledBack(_Event):
    """Training went back to the checkpoint of `step`: what was trained, or left out of training,
    after it was not."""

    event: Literal["rolled_back"] = "rolled_back"
    step: int


LedgerEvent = Annotated[
    Leased | ReLeased | Finished | Trained | Dropped | RolledBack, Field(discriminator="event")
]


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger knows of one episode."""

    lease: Lease
    state: State
    order: int
    """Grows with every change of any episode, so that it sorts them; a roll-back leaves it."""
    step: int | None = None
    """Step that trained it or left it out; once rolled back, the step that did before."""
    reason: DropReason | None = None


@dataclass(frozen=True, slots=True)
class ReadyGroup:
    """A complete group that waits to be trained: none of its episodes is still to come."""

    group: str
    task: str
    episodes: tuple[str, ...]
    """Those that finished, by sample index; dropped ones are left out."""
    planned_step: int | None
    """Step that was given the group before a roll-back: the resumed run trains it there again."""


@dataclass(frozen=True, slots=True)
class LedgerAudit:
    """Episodes by state, dropped ones by reason, and what is not as it should be."""

    states: Mapping[State, int]
    reasons: Mapping[DropReason, int]
    re_leases: int
    violations: tuple[str, ...]
    """Open leases, and groups of which only a part was trained."""


class LedgerState:
    """Every scheduled episode and where it stands; changed by events only."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.groups: dict[str, list[str]] = {}
        self.last_step = -1
        self._order = 0
        self._re_leases = 0

    def apply(self, event: LedgerEvent, record: Callable[[], None] = lambda: None) -> None:
        """Check `event`, call `record`, take it in; an error of either leaves all as it was."""
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
        """Return groups to train: rolled-back ones in their old order, others as they finished."""
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
            ready.append((key, ReadyGroup(group, finished[0].lease.task, ids, step)))
        return [group for _, group in sorted(ready, key=lambda pair: pair[0])]

    def open_leases(self) -> list[Lease]:
        """Return what was scheduled and has not ended, each with its current attempt."""
        return [entry.lease for entry in self.entries.values() if entry.state is State.LEASED]

    def accepts(self, lease: Lease) -> bool:
        """Whether a result for `lease` is still wanted: it is open, and of the current attempt."""
        entry = self.entries.get(lease.episode)
        return (
            entry is not None
            and entry.state is State.LEASED
            and entry.lease.attempt == lease.attempt
        )

    def audit(self) -> LedgerAudit:
        """Count episodes by state and list open leases and half-trained groups."""
        violations = [
            f"episode {lease.episode}: leased (attempt {lease.attempt}) and never ended"
            for lease in self.open_leases()
        ]
        for group, episodes in self.groups.items():
            states = [self.entries[episode].state for episode in episodes]
            if State.TRAINED in states and State.FINISHED in states:
                violations.append(
                    f"group {group}: {states.count(State.FINISHED)} finished episodes were left "
                    "behind when the others were trained"
                )
        entries = self.entries.values()
        states = Counter(entry.state for entry in entries)
        reasons = Counter(entry.reason for entry in entries if entry.reason is not None)
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
                        f"finish, found attempt {event.attempt}: it was leased again meanwhile"
                    )
                return [replace(entry, state=State.FINISHED, order=self._order)]
            case Trained():
                return self._trained(event)
            case Dropped():
                changed = self._moved(event.episodes, State.DROPPED, State.LEASED, State.FINISHED)
                return [replace(entry, reason=event.reason, step=event.step) for entry in changed]
            case RolledBack():
                return [
                    replace(entry, state=State.FINISHED, reason=None)
                    for entry in self.entries.values()
                    if entry.step is not None
                    and entry.state in (State.TRAINED, State.DROPPED)
                    and entry.step > event.step
                ]

    def _leased(self, event: Leased) -> list[Entry]:
        if event.group in self.groups:
            raise StoreError(
                f"group {event.group} was already leased: a group is leased once, whole"
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
                f"expected a step from {self.last_step} on, found {event.step}: steps only go "
                "back through roll_back"
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
