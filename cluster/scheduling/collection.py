"""Episodes to imitate, as they are played: tasks x samples into a run directory, resumable."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.progress import Counter, Progress
from cluster.scheduling.player import Affinity, Player
from cluster.scheduling.task_stream import TaskStream
from envs.errors import EngineError, InfraError, first_cause
from envs.seeds import stable_hash
from envs.tasks import Task
from rollout.episode import Lease
from rollout.store.ledger_state import DropReason, State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_reader import RunReader

_GIVE_UP = 8
"""Episodes that the world fails in a row before the collection takes it for broken."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is played: group i is task i of the stream, its seed derived from `seed`."""

    tasks: int
    samples: int
    seed: int
    concurrency: int


class Collection:
    """Plays what the run directory does not have yet; every finished episode is kept at once."""

    def __init__(
        self,
        run: RunDirectory,
        stream: TaskStream,
        player: Player,
        extent: Extent,
        affordable: Callable[[], bool] = lambda: True,
    ) -> None:
        """`affordable` says whether another episode may begin."""
        self._run = run
        self._stream = stream
        self._player = player
        self._extent = extent
        self._affordable = affordable
        self._affinities: dict[str, Affinity] = {}
        self._failed_in_a_row = 0
        self._done = 0

    async def play_all(self, progress: Progress) -> None:
        """Play to the end, or until no further episode is affordable; leases then stay open.

        Raises EngineError where nobody can act any more, and InfraError where too many episodes in
        a row failed.
        """
        self._settle()
        todo = self._todo()
        total = self._extent.tasks * self._extent.samples
        with progress.counter(total, "episodes", self._done) as counter:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._extent.concurrency):
                        group.create_task(self._work(todo, counter))
            except BaseExceptionGroup as errors:
                raise first_cause(errors) from None
        self._run.sync()

    def _settle(self) -> None:
        """End what a kill left between finished and collected."""
        entries = self._run.ledger.entries
        finished = [name for name, entry in entries.items() if entry.state is State.FINISHED]
        if finished:
            self._run.ledger.drop(finished, DropReason.COLLECTED)
        self._done = sum(entry.state is State.DROPPED for entry in entries.values())

    def _todo(self) -> Iterator[tuple[Lease, Task]]:
        """Yield what was under way when the run was left, then group by group as it is leased."""
        ledger = self._run.ledger
        for lease in ledger.open_leases():
            again = ledger.re_lease(lease.episode, "the run was resumed")
            yield again, self._stream[int(lease.group[1:])]
        for index in range(self._extent.tasks):
            group = f"t{index:06d}"
            if group in ledger.groups:
                continue
            task = self._stream[index]
            leases = [self._lease(group, task, sample) for sample in range(self._extent.samples)]
            ledger.lease(leases)
            for lease in leases:
                yield lease, task

    def _lease(self, group: str, task: Task, sample: int) -> Lease:
        parts = (group, task.id, sample) if sample else (group, task.id)
        seed = stable_hash(self._extent.seed, "teacher", *parts)
        name = f"{group}-{sample:02d}"
        return Lease(self._run.run.run, name, group, task.id, sample, 0, seed)

    async def _work(self, todo: Iterator[tuple[Lease, Task]], counter: Counter) -> None:
        while self._affordable() and (work := next(todo, None)) is not None:
            lease, task = work
            near = self._affinities.setdefault(lease.group, Affinity())
            try:
                batch = await self._player.play(lease, task, near)
            except EngineError:
                if self._affordable():
                    raise
                return
            self._note(lease, failed=batch is None)
            counter.advance()

    def _note(self, lease: Lease, *, failed: bool) -> None:
        if not failed:
            self._failed_in_a_row = 0
            self._run.ledger.drop([lease.episode], DropReason.COLLECTED)
            return
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _GIVE_UP:
            error = RunReader(self._run.path).episode(lease.episode).error
            raise InfraError(
                f"{self._failed_in_a_row} episodes in a row failed, the last: {error}. "
                "What was finished is kept; go on with --resume"
            )
