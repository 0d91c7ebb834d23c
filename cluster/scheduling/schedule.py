"""From a group's number to its task, its seeds and its leases; and what a killed run left open.

The group of a number has the same task and the same seeds in every process of a run, so a resumed
run continues as if it had not been interrupted. Names and seeds are part of what run directories
store: changing one here makes old runs impossible to resume.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.scheduling.task_sources import TaskSource
from envs.seeds import stable_hash
from envs.tasks import Task
from rollout.episode import Lease, RolloutKind
from rollout.store.ledger_state import ReLeaseReason, State
from rollout.store.run_directory import RunDirectory

RESUMED = "the run was resumed"
"""Reason in the ledger for scheduling an open lease again."""


@dataclass(frozen=True, slots=True)
class ScheduledGroup:
    """Episodes of one task that are to be run; they share a group and differ in their seeds."""

    task: Task
    leases: Sequence[Lease]

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.leases[0].group

    @property
    def number(self) -> int:
        """Number of the group."""
        return self.leases[0].group_number


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """What the groups of a run have in common."""

    kind: RolloutKind
    seed: int
    """The run's seed."""
    samples: int
    """Episodes of a group."""

    def group_name(self, number: int, task: str) -> str:
        """Return the name of group `number`; evaluations are grouped by task."""
        match self.kind:
            case RolloutKind.TRAIN:
                return f"g{number:06d}"
            case RolloutKind.COLLECT:
                return f"t{number:06d}"
            case RolloutKind.EVAL:
                return task

    def episode_seed(self, group: str, task: str, sample: int) -> int:
        """Return the seed of one episode: of its sampling and of its tool sessions."""
        match self.kind:
            case RolloutKind.TRAIN:
                return stable_hash(self.seed, group, task, sample)
            case RolloutKind.COLLECT:
                parts = (group, task, sample) if sample else (group, task)
                return stable_hash(self.seed, "teacher", *parts)
            case RolloutKind.EVAL:
                return stable_hash(self.seed, "eval", task, sample)

    def leases(self, run: str, number: int, task: str) -> list[Lease]:
        """Return the first leases of group `number`, whose task is `task`, in run `run`."""
        group = self.group_name(number, task)
        return [
            Lease(
                run=run,
                episode=f"{group}-{sample:02d}",
                kind=self.kind,
                group=group,
                group_number=number,
                task=task,
                sample_index=sample,
                attempt=0,
                seed=self.episode_seed(group, task, sample),
            )
            for sample in range(self.samples)
        ]


class Schedule:
    """Schedules the groups of one run in its ledger."""

    def __init__(self, run: RunDirectory, tasks: TaskSource, plan: GroupPlan) -> None:
        self._run = run
        self._tasks = tasks
        self._plan = plan

    @property
    def next_number(self) -> int:
        """Number after the highest that was scheduled."""
        entries = self._run.ledger.entries.values()
        return 1 + max((entry.lease.group_number for entry in entries), default=-1)

    def name(self, number: int) -> str:
        """Return the name of group `number`."""
        return self._plan.group_name(number, self._tasks[number].id)

    def is_scheduled(self, number: int) -> bool:
        """Whether the ledger has group `number`."""
        return self._run.ledger.is_known(self.name(number))

    def schedule(self, number: int) -> ScheduledGroup:
        """Schedule group `number` for the first time. Raises StoreError for one that is known."""
        task = self._tasks[number]
        leases = self._plan.leases(self._run.info.run, number, task.id)
        self._run.ledger.lease(leases)
        return ScheduledGroup(task, leases)

    def resume(self) -> Iterator[ScheduledGroup]:
        """Schedule again, group by group, what was open when the run was left."""
        for group in dict.fromkeys(lease.group for lease in self._run.ledger.open_leases()):
            if (scheduled := self.resume_group(group)) is not None:
                yield scheduled

    def resume_group(self, group: str) -> ScheduledGroup | None:
        """Schedule again what is open of one group; None where nothing of it is open."""
        ledger = self._run.ledger
        entries = [ledger.entries[episode] for episode in ledger.groups[group]]
        leases = [
            ledger.re_lease(entry.lease.episode, RESUMED, ReLeaseReason.RESUMED)
            for entry in entries
            if entry.state is State.LEASED
        ]
        return ScheduledGroup(task_of(leases[0], self._tasks), leases) if leases else None


def task_of(lease: Lease, tasks: TaskSource) -> Task:
    """Return the task of `lease`. Raises IndexError where `tasks` has too few.

    Evaluations of older run directories have no group numbers: their task is found by its id, and
    LookupError raised where there is none.
    """
    if lease.group_number >= 0:
        return tasks[lease.group_number]
    assert isinstance(tasks, Sequence), "only evaluations, whose tasks are a list, lack the number"
    for task in tasks:
        if task.id == lease.task:
            return task
    raise LookupError(f"no task {lease.task}")
