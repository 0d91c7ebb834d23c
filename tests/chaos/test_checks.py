"""The checks of the chaos tests find what they are made for, in ledgers that are wrong by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.checks import Replayed, log_lines, not_stored, replay
from tests.chaos.faults import LONG, SHORT, Blow, Fault, Target, shuffled
from tests.chaos.journal import Journal
from tests.chaos.named import is_named
from tests.chaos.report import times

Events = list[dict[str, Any]]


def leased(number: int) -> dict[str, Any]:
    group = f"g{number}"
    samples = [{"episode": f"{group}-{i}", "sample_index": i, "attempt": 0} for i in range(2)]
    return {"event": "leased", "group": group, "group_number": number, "samples": samples}


def finished(number: int, attempt: int = 0) -> Events:
    return [
        {"event": "finished", "episode": f"g{number}-{i}", "attempt": attempt} for i in range(2)
    ]


def trained(number: int, step: int) -> dict[str, Any]:
    return {"event": "trained", "step": step, "episodes": [f"g{number}-0", f"g{number}-1"]}


def dropped(number: int, reason: str, step: int | None = None) -> dict[str, Any]:
    episodes = [f"g{number}-0", f"g{number}-1"]
    return {"event": "dropped", "reason": reason, "episodes": episodes, "step": step}


GOOD: Events = [
    *(leased(0), leased(1), *finished(0), trained(0, 1), *finished(1), trained(1, 2)),
    {"event": "rolled_back", "step": 1},
    *(trained(1, 2), leased(2), *finished(2), dropped(2, "surplus")),
]


def violations(events: Events, steps: int = 2) -> str:
    return "\n".join(Replayed(groups_per_step=1).read(events).violations(steps))


def test_a_good_ledger_has_no_violations() -> None:
    replayed = Replayed(groups_per_step=1).read(GOOD)
    assert replayed.violations(2) == []
    assert replayed.counts()["trained"] == 2
    assert replayed.counts()["roll-backs"] == 1


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([*GOOD, trained(0, 2)], "trained at 2 as trained"),
        ([*GOOD[:6], leased(4), *GOOD[6:]], "skipped or repeated"),
        ([*GOOD[:-1], dropped(2, "infra_failed")], "g2 was lost: {'infra_failed'}"),
        ([*GOOD[:-1], dropped(2, "cancelled")], "g2 was finished, and cancelled"),
        (GOOD[:-1], "g2 did not end: {'finished'}"),
        ([*GOOD[:-1], *finished(2)], "a result of another attempt counts"),
        (
            [*GOOD[:-1], {"event": "re_leased", "episode": "g2-0", "attempt": 1, "why": "gone"}],
            "finished, and run again: gone",
        ),
        ([*GOOD[:9], trained(1, 3)], "groups by step"),
        (
            [*GOOD[:9], {"event": "rolled_back", "step": 0}, trained(0, 2), trained(1, 1)],
            "at several steps: [1, 2]",
        ),
    ],
)
def test_a_wrong_ledger_has(events: Events, found: str) -> None:
    assert found in violations(events)


def test_a_group_that_the_learner_left_out_counts_for_its_step() -> None:
    events = [leased(0), *finished(0), dropped(0, "overlong", step=1)]
    assert violations(events, steps=1) == ""


def test_an_episode_that_is_not_in_the_store_is_found(tmp_path: Path) -> None:
    for folder in ("ledger", "index"):
        (tmp_path / folder).mkdir()
    lines = "".join(json.dumps(event) + "\n" for event in GOOD)
    (tmp_path / "ledger" / "events.jsonl").write_text(lines + '{"torn')
    rows = [{"episode": f"g{g}-{i}", "attempt": 0} for g in (0, 1) for i in (0, 1)][:-1]
    (tmp_path / "index" / "0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not_stored(tmp_path, replay(tmp_path, 1)) == ["g1-1"]


def test_a_fault_is_named_only_by_a_line_after_it(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(
        "2026-01-01 00:00:10 warning: worker-1 lost after 5 s: died\nno time\n"
        "2026-01-01 00:00:30 warning: worker-2: tool server worker-2.77 replaced its fork server\n"
    )
    lines = log_lines(tmp_path)
    assert len(lines) == 2
    journal, first = Journal(tmp_path / "journal"), lines[0][0]
    before = journal.write(0, "injected", victim="worker-1", at=first - 1)
    after = journal.write(0, "injected", victim="worker-1", at=first + 2)
    worker = Fault(target=Target.WORKER, state="idle", blow=Blow.KILL, within_s=1)
    assert is_named(worker, before, lines) and not is_named(worker, after, lines)
    forker = Fault(target=Target.FORK_SERVER, state="serving", blow=Blow.KILL, within_s=1)
    hit = journal.write(1, "injected", victim="worker-2, server 77", at=first)
    assert is_named(forker, hit, lines)
    journal.write(0, "noticed", at=first + 3)
    journal.write(0, "over", at=first + 5)
    assert times([worker, forker], journal) == {0: (1.0, 3.0)}


def test_the_schedules_have_every_kind_of_fault_and_keep_pairs_together() -> None:
    faults = shuffled(LONG, 3)
    assert len(faults) >= 60
    assert {fault.target for fault in faults} == set(Target)
    assert {fault.blow for fault in faults} == set(Blow)
    for before, fault in zip([None, *faults], faults, strict=False):
        assert (fault.state == "starting") == (before is not None and before.leads)
    assert shuffled(LONG, 3) == faults != shuffled(LONG, 4)
    assert len(shuffled(SHORT, 0)) == 4
