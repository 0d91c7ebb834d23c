"""Every scheduled episode ends in exactly one state, across kills, roll-backs and stray results."""

import random
from pathlib import Path

import pytest

from envs.errors import StoreError
from rollout.episode import Lease, RolloutKind
from rollout.store.ledger import Ledger, LedgerReader
from rollout.store.ledger_state import DropReason, State
from rollout.store.line_checks import with_checksum


def leases(group: str, size: int = 2) -> list[Lease]:
    return [
        Lease(
            run="run-1",
            episode=f"{group}.{i}",
            kind=RolloutKind.TRAIN,
            group=group,
            group_number=0,
            task=f"task-{group}",
            sample_index=i,
            attempt=0,
            seed=100 + i,
        )
        for i in range(size)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return Ledger(path)


def finish_group(ledger: Ledger, group: str) -> list[str]:
    members = leases(group)
    ledger.lease(members)
    for lease in members:
        ledger.finish(lease)
    return [lease.episode for lease in members]


def test_the_way_of_an_episode_is_recorded(ledger: Ledger, path: Path) -> None:
    first, second, third = leases("g", 3)
    ledger.lease([first, second, third])
    again = ledger.re_lease(second.episode, "its worker died")
    assert again == Lease(
        run="run-1",
        episode="g.1",
        kind=RolloutKind.TRAIN,
        group="g",
        group_number=0,
        task="task-g",
        sample_index=1,
        attempt=1,
        seed=101,
    )
    ledger.finish(first)
    ledger.finish(again)
    ledger.drop([third.episode], DropReason.INFRA_FAILED)
    ledger.train(4, [first.episode, again.episode])
    audit = LedgerReader(path).refresh().audit()
    assert audit == ledger.audit()
    assert {state: n for state, n in audit.states.items() if n} == {
        State.TRAINED: 2,
        State.DROPPED: 1,
    }
    assert audit.reasons == {DropReason.INFRA_FAILED: 1}
    assert (audit.re_leases, audit.violations) == (1, ())
    assert ledger.entries["g.0"].step == 4


def test_open_leases_are_violations(ledger: Ledger) -> None:
    ledger.lease(leases("g"))
    ledger.re_lease("g.1", "lost")
    assert ledger.audit().violations == (
        "episode g.0: leased (attempt 0) and not ended",
        "episode g.1: leased (attempt 1) and not ended",
    )


def test_a_group_trained_in_part_is_a_violation(ledger: Ledger) -> None:
    episodes = finish_group(ledger, "g")
    ledger.train(0, episodes[:1])
    assert ledger.audit().violations == (
        "group g: 1 finished episodes were not trained on with the others",
    )


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda ledger: ledger.train(1, ["done.0"]), "found already trained at step 0"),
        (lambda ledger: ledger.train(1, ["open.0"]), "expected finished, found leased"),
        (lambda ledger: ledger.train(1, ["ready.0", "ready.0"]), "expected each episode once"),
        (lambda ledger: ledger.train(-1, ["ready.0"]), "expected step 0 or later, found -1"),
        (lambda ledger: ledger.train(1, ["ready.0", "who"]), "found who, which was never leased"),
        (lambda ledger: ledger.drop(["done.0"], DropReason.STALE), "found already trained"),
        (lambda ledger: ledger.drop(["who"], DropReason.STALE), "never leased"),
        (lambda ledger: ledger.finish(leases("done")[0]), "found already trained"),
        (lambda ledger: ledger.re_lease("done.0", "why"), "found already trained"),
        (lambda ledger: ledger.re_lease("who", "why"), "never leased"),
        (lambda ledger: ledger.lease(leases("done")), "found done, which was already leased"),
        (lambda ledger: ledger.lease([leases("a")[0], leases("b")[0]]), "leases of one group"),
        (lambda ledger: ledger.lease([]), "leases of one group"),
    ],
)
def test_what_may_not_happen_is_refused_and_not_recorded(
    ledger: Ledger, path: Path, act, message: str
) -> None:
    ledger.train(0, finish_group(ledger, "done"))
    finish_group(ledger, "ready")
    ledger.lease(leases("open"))
    before = path.read_bytes()
    with pytest.raises(StoreError, match=message):
        act(ledger)
    assert path.read_bytes() == before
    assert LedgerReader(path).refresh().entries == ledger.entries


def test_a_result_of_an_earlier_attempt_is_not_accepted(ledger: Ledger) -> None:
    stray = leases("g")[0]
    ledger.lease(leases("g"))
    fresh = ledger.re_lease(stray.episode, "its worker was slow")
    assert not ledger.accepts(stray)
    assert ledger.accepts(fresh)
    with pytest.raises(StoreError, match="found attempt 0: it was leased again since"):
        ledger.finish(stray)


def test_ready_groups_are_complete_and_in_the_order_of_finishing(ledger: Ledger) -> None:
    for group in ("a", "b", "c", "d"):
        ledger.lease(leases(group))
    for group, index in (("a", 0), ("b", 1), ("b", 0), ("c", 0), ("c", 1)):
        ledger.finish(leases(group)[index])
    assert [(g.group, g.task, g.episodes) for g in ledger.ready_groups()] == [
        ("b", "task-b", ("b.0", "b.1")),
        ("c", "task-c", ("c.0", "c.1")),
    ]
    ledger.drop(["a.1"], DropReason.DEADLINE)
    assert [g.episodes for g in ledger.ready_groups()][-1] == ("a.0",)
    ledger.drop(["c.0", "c.1"], DropReason.ZERO_VARIANCE)
    assert [g.group for g in ledger.ready_groups()] == ["b", "a"]
    assert [lease.episode for lease in ledger.open_leases()] == ["d.0", "d.1"]


def test_a_partial_group_keeps_what_finished(ledger: Ledger, path: Path) -> None:
    ledger.lease(leases("g", 3))
    ledger.finish(leases("g", 3)[1])
    resumed = Ledger(path)
    for lease in resumed.open_leases():
        resumed.finish(resumed.re_lease(lease.episode, "the run was resumed"))
    assert resumed.ready_groups()[0].episodes == ("g.0", "g.1", "g.2")
    assert [resumed.entries[f"g.{i}"].lease.attempt for i in range(3)] == [1, 0, 1]


def test_a_roll_back_plans_the_same_groups_for_the_same_steps(ledger: Ledger, path: Path) -> None:
    groups = {name: finish_group(ledger, name) for name in "abcdef"}
    ledger.train(0, groups["c"])
    ledger.train(1, groups["b"] + groups["a"])
    ledger.train(2, groups["e"])
    resumed = Ledger(path)
    resumed.roll_back(0)
    planned = [(g.group, g.planned_step) for g in resumed.ready_groups()]
    assert planned == [("b", 1), ("a", 1), ("e", 2), ("d", None), ("f", None)]
    resumed.train(1, groups["b"] + groups["a"])
    twice = Ledger(path)
    twice.roll_back(-1)
    planned = [(g.group, g.planned_step) for g in twice.ready_groups()]
    assert planned == [("c", 0), ("b", 1), ("a", 1), ("e", 2), ("d", None), ("f", None)]
    twice.train(0, groups["c"])
    with pytest.raises(StoreError, match="already trained at step 0"):
        twice.train(1, groups["c"])


def test_a_roll_back_gives_the_learner_back_what_it_left_out(ledger: Ledger, path: Path) -> None:
    episodes = {name: finish_group(ledger, name) for name in "abc"}
    ledger.drop(["a.0"], DropReason.TRUNCATED, step=1)
    ledger.train(1, ["a.1"])
    ledger.drop(["b.0"], DropReason.TRUNCATED, step=2)  # and a kill before the rest is trained
    ledger.drop(episodes["c"], DropReason.ZERO_VARIANCE)
    assert ledger.audit().reasons == {DropReason.TRUNCATED: 2, DropReason.ZERO_VARIANCE: 2}
    resumed = Ledger(path)
    resumed.roll_back(1)
    assert [(g.episodes, g.planned_step) for g in resumed.ready_groups()] == [(("b.0", "b.1"), 2)]
    resumed.roll_back(0)
    assert [(g.episodes, g.planned_step) for g in resumed.ready_groups()] == [
        (("a.0", "a.1"), 1),
        (("b.0", "b.1"), 2),
    ]
    assert resumed.audit().reasons == {DropReason.ZERO_VARIANCE: 2}


def test_a_group_stays_that_of_the_step_that_played_it(ledger: Ledger, path: Path) -> None:
    """Dropped before the learner: a roll-back of the step does not give it back."""
    names = finish_group(ledger, "g0")
    ledger.drop(names, DropReason.ZERO_VARIANCE, collected_for=3)
    ledger.roll_back(1)
    for state in (ledger, LedgerReader(path).refresh()):
        assert {state.entries[name].collected_for for name in names} == {3}
        assert {state.entries[name].state for name in names} == {State.DROPPED}
        assert state.ready_groups() == []


def test_reconciling_squares_the_ledger_with_the_store(ledger: Ledger) -> None:
    ledger.lease(leases("g", 4))
    for lease in leases("g", 4)[2:]:
        ledger.finish(lease)
    ledger.reconcile({"g.0": {0: True}, "g.1": {0: False}, "g.2": {0: True}, "x": {0: True}})
    states = [(e.state, e.lease.attempt) for e in ledger.entries.values()]
    assert states == [
        (State.FINISHED, 0),
        (State.LEASED, 0),
        (State.FINISHED, 0),
        (State.LEASED, 1),
    ]


def test_a_torn_line_never_happened(ledger: Ledger, path: Path) -> None:
    finish_group(ledger, "g")
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(0, len(content) + 1, 5):
        path.write_bytes(content[:cut])
        state = LedgerReader(path).refresh()
        whole = sum(end <= cut for end in ends)
        assert len(state.entries) == (2 if whole else 0)
        assert sum(e.state is State.FINISHED for e in state.entries.values()) == max(0, whole - 1)
    path.write_bytes(content[:-5])
    resumed = Ledger(path)
    resumed.finish(leases("g")[1])
    assert len(LedgerReader(path).refresh().ready_groups()) == 1


def test_a_damaged_line_is_named(ledger: Ledger, path: Path) -> None:
    finish_group(ledger, "g")
    lines = path.read_text().splitlines(keepends=True)
    unreadable = with_checksum('{"event": "trained"}')
    path.write_text("".join([lines[0], f"{unreadable}\n", *lines[1:]]))
    with pytest.raises(StoreError, match=r"events\.jsonl:2: expected a ledger event"):
        Ledger(path)


def test_a_reader_follows_a_live_ledger(ledger: Ledger, path: Path) -> None:
    reader = LedgerReader(path)
    assert not reader.refresh().entries
    episodes = finish_group(ledger, "g")
    assert len(reader.refresh().ready_groups()) == 1
    ledger.train(0, episodes)
    assert reader.refresh().audit() == ledger.audit()


@pytest.mark.parametrize("seed", range(20))
def test_random_lives_train_every_finished_group_exactly_once(path: Path, seed: int) -> None:
    """Kill and resume at random: the last word on each group is one step, steps in order."""
    draw = random.Random(seed)
    ledger, step, checkpoint, made = Ledger(path), 0, -1, 0
    for _ in range(60):
        action = draw.choice(["lease", "finish", "finish", "train", "checkpoint", "kill"])
        open_leases, ready = ledger.open_leases(), ledger.ready_groups()
        if action == "lease":
            ledger.lease(leases(f"g{made}"))
            made += 1
        elif action == "finish" and open_leases:
            ledger.finish(draw.choice(open_leases))
        elif action == "train" and ready:
            ledger.train(step, ready[0].episodes)
            assert ready[0].planned_step in (None, step)
            step += 1
        elif action == "checkpoint":
            checkpoint = step - 1
        elif action == "kill":
            ledger.close()
            ledger = Ledger(path)
            ledger.roll_back(checkpoint)
            step = checkpoint + 1
            for lease in ledger.open_leases():
                ledger.re_lease(lease.episode, "resumed")
    for lease in ledger.open_leases():
        ledger.finish(lease)
    for ready in ledger.ready_groups():
        ledger.train(step, ready.episodes)
        step += 1
    audit = ledger.audit()
    assert audit.violations == ()
    assert audit.states[State.TRAINED] == 2 * made
    steps = [ledger.entries[f"g{i}.0"].step for i in range(made)]
    assert sorted(steps, key=lambda s: -1 if s is None else s) == list(range(made))
    assert all(
        ledger.entries[f"g{i}.0"].step == ledger.entries[f"g{i}.1"].step for i in range(made)
    )
