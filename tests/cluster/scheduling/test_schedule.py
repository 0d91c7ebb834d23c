"""Names and seeds of every kind of run: stored runs depend on these very numbers."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.config.environments import make_environment
from cluster.config.run_config import RunConfig, load_config, to_toml
from cluster.scheduling.schedule import GroupPlan, Schedule, task_of
from cluster.scheduling.task_sources import task_source
from rollout.episode import RolloutKind
from rollout.store.ledger_state import State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo

TRAIN = "catalog-train-3531393245923402637-227"
TRAIN_300 = "catalog-train-6978545136554320792-31"
COLLECT = "catalog-train-6262096279241060028-50"
COLLECT_2 = "catalog-train-6262096279241060028-158"
HELDOUT = "catalog-heldout-8525529270505866458"
PINNED = [
    (
        (RolloutKind.TRAIN, 0, "g000000", TRAIN),
        [9028910681565969146, 6334059274207605268, 3748117396508635803],
    ),
    (
        (RolloutKind.TRAIN, 300, "g000300", TRAIN_300),
        [2270627855645800970, 170917920226096602, 3108458964068672062],
    ),
    ((RolloutKind.COLLECT, 0, "t000000", COLLECT), [6623306870065361540, 1408480240252527994]),
    ((RolloutKind.COLLECT, 2, "t000002", COLLECT_2), [730117572379211828, 7735036269124874723]),
    (
        (RolloutKind.EVAL, 0, f"{HELDOUT}-0", f"{HELDOUT}-0"),
        [1856470784641559730, 1494485745298480529],
    ),
    (
        (RolloutKind.EVAL, 1, f"{HELDOUT}-1", f"{HELDOUT}-1"),
        [8543195967551263547, 7059989314322088942],
    ),
]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config("catalog", ["run.seed=11", "eval.tasks=4", "run.name=pinned"])


def new_run(path: Path, config: RunConfig) -> RunDirectory:
    info = RunInfo(run="pinned", seed=11, created_at=0.0)
    return RunDirectory.create(path, to_toml(config), info)


def schedule_of(kind: RolloutKind, run: RunDirectory, config: RunConfig, samples: int) -> Schedule:
    tasks = task_source(kind, config, make_environment(config.env))
    return Schedule(run, tasks, GroupPlan(kind=kind, seed=config.run.seed, samples=samples))


@pytest.mark.parametrize(("group", "seeds"), PINNED)
def test_a_number_gives_the_same_task_and_seeds_as_ever(
    tmp_path: Path,
    config: RunConfig,
    group: tuple[RolloutKind, int, str, str],
    seeds: Sequence[int],
) -> None:
    kind, number, name, task = group
    with new_run(tmp_path / "run", config) as run:
        scheduled = schedule_of(kind, run, config, len(seeds)).schedule(number)
    assert (scheduled.name, scheduled.number, scheduled.task.id) == (name, number, task)
    assert [lease.seed for lease in scheduled.leases] == list(seeds)
    assert [lease.episode for lease in scheduled.leases] == [
        f"{name}-{sample:02d}" for sample in range(len(seeds))
    ]
    assert {(lease.kind, lease.attempt) for lease in scheduled.leases} == {(kind, 0)}


@pytest.mark.parametrize("kind", list(RolloutKind))
def test_open_leases_are_scheduled_again_with_their_task(
    tmp_path: Path, config: RunConfig, kind: RolloutKind
) -> None:
    path = tmp_path / "run"
    with new_run(path, config) as run:
        schedule = schedule_of(kind, run, config, 2)
        groups = [schedule.schedule(number) for number in range(3)]
        run.ledger.finish(groups[0].leases[0])
        for lease in groups[1].leases:
            run.ledger.finish(lease)
    with RunDirectory.open(path) as run:
        schedule = schedule_of(kind, run, config, 2)
        assert schedule.next_number == 3
        assert [schedule.is_scheduled(n) for n in (2, 3)] == [True, False]
        again = list(schedule.resume())
        states = [entry.state for entry in run.ledger.entries.values()]
    assert [(s.number, s.task.id) for s in again] == [(n, groups[n].task.id) for n in (0, 2)]
    attempts = [(lease.sample_index, lease.attempt, lease.seed) for lease in again[0].leases]
    assert attempts == [(1, 1, groups[0].leases[1].seed)]
    assert states.count(State.LEASED) == 3


def test_an_older_ledger_gives_kind_and_number_by_name(tmp_path: Path, config: RunConfig) -> None:
    tasks = task_source(RolloutKind.EVAL, config, make_environment(config.env))
    path = tmp_path / "run"
    new_run(path, config).close()
    sample = '{"episode": "%s-00", "sample_index": 0, "attempt": 0, "seed": 1}'
    lines = [
        f'{{"event": "leased", "run": "r", "group": "{group}", "task": "{task}", '
        f'"samples": [{sample % group}]}}'
        for group, task in (("g000007", "a"), ("t000009", "b"), (tasks[2].id, tasks[2].id))
    ]
    (path / "ledger" / "events.jsonl").write_text("\n".join(lines) + "\n")
    with RunDirectory.open(path) as run:
        leases = [entry.lease for entry in run.ledger.entries.values()]
    assert [(lease.kind, lease.group_number) for lease in leases] == [
        (RolloutKind.TRAIN, 7),
        (RolloutKind.COLLECT, 9),
        (RolloutKind.EVAL, -1),
    ]
    assert task_of(leases[2], tasks).id == tasks[2].id
