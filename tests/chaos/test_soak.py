"""A run under random faults learns as much as one without: success within two standard errors."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.checks import objects, replay
from tests.chaos.conftest import LONG, SIZES
from tests.chaos.driver import Plan
from tests.chaos.faults import RECIPE, SOAK, Fault, shuffled
from tests.chaos.journal import Journal
from tests.chaos.report import print_table
from tests.chaos.stage import Stage, run_driver, stage

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600), LONG]

STEPS, COUNTED, GROUPS = 50, 15, 8
SEED = int(os.environ.get("TRIALRUN_CHAOS_SEED", "2"))


def run_once(made: Stage, name: str, taught: Path, schedule: list[Fault]) -> Path:
    """Train with `schedule`; return the run directory."""
    folder = made.folder / "soak"
    overrides = [
        *(f"run.dir={folder}", f"run.models_dir={made.folder / 'models'}", f"run.name={name}"),
        *(f"model.path={taught}", f"run.steps={STEPS}", *SIZES, *RECIPE),
        *(f"rollouts.groups_per_step={GROUPS}", "rollouts.workers=2", "run.checkpoint_every=2"),
    ]
    journal = made.folder / f"soak-{name}.jsonl"
    plan = Plan(
        overrides=overrides, schedule=schedule, journal=str(journal), mark=str(made.scratch)
    )
    run_driver(made, plan, None, 2400)
    print_table(schedule, Journal(journal))
    assert len(Journal(journal).of("injected")) == len(schedule)
    return folder / name


def success(run: Path, steps: Sequence[int]) -> tuple[float, float]:
    """Return the mean success over `steps` and its standard error, over steps."""
    rows = {row["step"]: row for row in objects(run / "metrics" / "metrics.jsonl")}
    found = np.array([rows[step]["success"] for step in steps])
    return float(found.mean()), float(found.std(ddof=1) / math.sqrt(len(found)))


def test_a_run_under_fire_learns_as_much(chaos_folder: Path, taught: Path) -> None:
    with stage(chaos_folder, (2, 2)) as made:
        quiet = run_once(made, "quiet", taught, [])
        shaken = run_once(made, "shaken", taught, shuffled(SOAK, SEED))
    first, last = range(1, COUNTED + 1), range(STEPS - COUNTED + 1, STEPS + 1)
    for run in (quiet, shaken):
        assert replay(run, GROUPS).violations(STEPS) == []
    ends = [success(run, last) for run in (quiet, shaken)]
    starts = [success(run, first) for run in (quiet, shaken)]
    print(f"success at first {starts}, at last {ends} (mean, standard error)")
    difference, error = abs(ends[0][0] - ends[1][0]), math.hypot(ends[0][1], ends[1][1])
    assert difference <= 2 * error
    for (before, error_before), (after, error_after) in zip(starts, ends, strict=True):
        assert after - before > 2 * math.hypot(error_before, error_after), "it learns at all"
