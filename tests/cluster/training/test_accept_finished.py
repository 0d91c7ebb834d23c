"""Episodes that workers finished while a run had no driver."""

from dataclasses import replace
from pathlib import Path

from cluster.scheduling.rollouts import Rollouts
from cluster.scheduling.task_stream import TaskStream
from cluster.training.job import accept_finished
from rollout.episode import Outcome
from rollout.episode_schema import to_batch
from rollout.store.ledger_state import State
from rollout.store.run_reader import RunReader
from tests.cluster.conftest import Fleet, Numbered, canned, leases_of
from tests.cluster.scheduling.test_rollouts import make_config, new_run


async def test_what_the_ledger_waits_for_counts_and_the_rest_does_not(
    tmp_path: Path, fleet: Fleet, numbered: Numbered
) -> None:
    config = make_config(tmp_path, groups_per_step=1)
    stream = TaskStream(numbered, "train", 0)
    with new_run(config) as run:
        first, second, third, fourth = leases = leases_of(stream[0], 4)
        run.ledger.lease(leases)
        newer = run.ledger.re_lease(second.episode, "its worker was lost")
        run.ledger.finish(third)
        unknown = leases_of(stream[1], 1, number=1)[0]
        episodes = [
            canned(first, stream[0], 0, "worker-1"),
            canned(second, stream[0], 0, "worker-1"),
            canned(third, stream[0], 0, "worker-1"),
            replace(
                canned(fourth, stream[0], 0, "worker-1"), outcome=Outcome.INFRA_FAILED, reward=None
            ),
            canned(unknown, stream[1], 0, "worker-1"),
        ]
        await accept_finished(run, [to_batch([episode]) for episode in episodes])
        run.sync()
        states = [run.ledger.entries[lease.episode].state for lease in leases]
        assert states == [State.FINISHED, State.LEASED, State.FINISHED, State.LEASED]
        assert run.ledger.entries[second.episode].lease == newer
        stored = [row.episode for row in RunReader(run.path).episodes()]
        assert stored == [first.episode, fourth.episode]


async def test_a_group_that_they_complete_is_ready_at_once(
    tmp_path: Path, fleet: Fleet, numbered: Numbered
) -> None:
    config = make_config(tmp_path, groups_per_step=1)
    stream = TaskStream(numbered, "train", 0)
    with new_run(config) as run:
        leases = leases_of(stream[0], 4)
        run.ledger.lease(leases)
        rows = [to_batch([canned(lease, stream[0], 0, "worker-1")]) for lease in leases]
        await accept_finished(run, rows)
        pool = fleet.pool()
        pool.resize(1)
        rollouts = Rollouts(pool, stream, run, config)
        rollouts.start(0)
        (group,) = await rollouts.collect(1)
        assert group.episodes == [lease.episode for lease in leases]
        assert fleet.started == []
        await rollouts.close()
