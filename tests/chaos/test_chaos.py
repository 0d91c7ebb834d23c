"""The long chaos run: every kind of fault, each with a witness, and nothing lost or trained twice.

Real vLLM workers, two ranks of real DeepSpeed, real tool servers, two raylets beside the head.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from rollout.store.run_layout import RunLayout
from tests.chaos.checks import log_lines, not_stored, replay, steps_without_metrics
from tests.chaos.conftest import LONG, SIZES
from tests.chaos.disks import Disk, compile_library, small_disk
from tests.chaos.driver import Plan
from tests.chaos.faults import LONG as FAULTS
from tests.chaos.faults import RECIPE, Blow, Fault, Target, shuffled
from tests.chaos.journal import Journal
from tests.chaos.named import is_named
from tests.chaos.report import print_table, times
from tests.chaos.stage import Show, run_driver, stage, survivors

pytestmark = [pytest.mark.real, pytest.mark.timeout(5400), LONG]

STEPS, MORE, AT_MOST = 200, 100, 1500
FEW_STEPS = 40
"""Steps of a run with some of the faults."""
SEED = int(os.environ.get("TRIALRUN_CHAOS_SEED", "1"))
GROUPS = 4


@dataclass(frozen=True)
class Finished:
    """What the run left behind."""

    run: Path
    steps: int
    schedule: list[Fault]
    journal: Journal
    shows: list[Show]


def faults_here(*, small: bool, slow: bool) -> list[Fault]:
    """Return the schedule without what this machine cannot do.

    TRIALRUN_CHAOS_ONLY, a regular expression, chooses some faults by their names.
    """
    chosen = os.environ.get("TRIALRUN_CHAOS_ONLY", "")
    groups: Sequence[Sequence[Fault]] = [
        group
        for group in FAULTS
        if re.search(chosen, group[-1].name)
        and (small or group[0].blow is not Blow.FULL)
        and (slow or group[0].blow is not Blow.SLOW)
    ]
    return shuffled(groups, SEED)


@pytest.fixture(scope="module")
def finished(chaos_folder: Path, taught: Path) -> Iterator[Finished]:
    disk = Disk(chaos_folder / "disk", chaos_folder / "switch")
    disk.folder.mkdir()
    disk.switch.mkdir()
    with small_disk(disk) as small, stage(chaos_folder, (5, 5)) as made:
        schedule = faults_here(small=small, slow=compile_library(disk))
        steps = FEW_STEPS if os.environ.get("TRIALRUN_CHAOS_ONLY") else STEPS
        journal, shows = Journal(chaos_folder / "journal.jsonl"), []
        while True:
            overrides = [
                *(f"run.dir={disk.folder}", f"run.models_dir={chaos_folder / 'models'}"),
                *("run.name=chaos", f"model.path={taught}", f"run.steps={steps}", *SIZES, *RECIPE),
                *("run.checkpoint_every=2", "rollouts.workers=3", "learner.ranks=2"),
            ]
            plan = Plan(
                overrides=overrides,
                schedule=schedule,
                journal=str(chaos_folder / "journal.jsonl"),
                mark=str(made.scratch),
                disk=str(disk.folder),
                switch=str(disk.switch),
            )
            shows.append(run_driver(made, plan, disk, 3600))
            # Steps that are quicker than faults: the same run gets more of them.
            if len(journal.of("over")) + len(journal.of("failed")) >= len(schedule):
                break
            steps += MORE
            assert steps <= AT_MOST, f"{len(journal.of('over'))} of {len(schedule)} faults are over"
        print_table(schedule, journal)
        yield Finished(disk.folder / "chaos", steps, schedule, journal, shows)


def test_every_fault_happened_and_has_a_witness(finished: Finished) -> None:
    injected = finished.journal.of("injected")
    assert sorted(injected) == list(range(len(finished.schedule)))
    if not os.environ.get("TRIALRUN_CHAOS_ONLY"):
        assert len(injected) >= 60
    for number, line in injected.items():
        fault = finished.schedule[number]
        assert line.saw, fault.name
        if fault.target not in (Target.DRIVER, Target.DISK):
            assert line.saw.endswith("stopped" if fault.blow is Blow.STOP else "dead"), line
    deaths = [code for show in finished.shows for code in show.exits if code]
    killed = [f for f in finished.schedule if f.target is Target.DRIVER and f.blow is not Blow.STOP]
    full = [f for f in finished.schedule if f.blow is Blow.FULL]
    assert len(deaths) == len(killed) + len(full), "each death of the driver was a fault's"


def test_every_fault_was_over_within_its_deadline(finished: Finished) -> None:
    failed = finished.journal.of("failed")
    assert not failed, [(finished.schedule[n].name, line.saw) for n, line in failed.items()]
    found = times(finished.schedule, finished.journal)
    assert len(found) == len(finished.schedule)
    late = {
        finished.schedule[number].name: over
        for number, (_, over) in found.items()
        if over > finished.schedule[number].within_s
    }
    assert not late


def test_what_was_hit_is_gone(finished: Finished) -> None:
    hit = [
        (line.pid, line.at)
        for number, line in finished.journal.of("injected").items()
        if finished.schedule[number].target is not Target.DRIVER
        and finished.schedule[number].target is not Target.DISK
    ]
    assert survivors(hit) == []


def test_the_run_made_its_steps_and_lost_nothing(finished: Finished) -> None:
    assert (RunLayout(finished.run).model / "model.safetensors").exists()
    assert steps_without_metrics(finished.run, finished.steps) == set()
    replayed = replay(finished.run, GROUPS)
    print(replayed.counts())
    assert replayed.violations(finished.steps) == []
    assert not_stored(finished.run, replayed) == []
    assert replayed.rollbacks >= 1


def test_every_fault_is_named_in_the_log(finished: Finished) -> None:
    lines = log_lines(finished.run)
    unnamed = [
        f"{finished.schedule[number].name}: {line}"
        for number, line in finished.journal.of("injected").items()
        if not is_named(finished.schedule[number], line, lines)
    ]
    assert not unnamed, "\n".join(unnamed)
