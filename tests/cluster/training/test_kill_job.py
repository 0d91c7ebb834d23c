"""Kill the whole job with SIGKILL at a random moment and go on with --resume.

Ray's own agents (names in *Agent) notice about a minute later; they hold nothing of the run.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rollout.store.ledger_state import DropReason, State
from rollout.store.run_reader import RunReader

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
STEPS = 12
"""So many that the kill comes long before the last one, on a quick machine too."""


def command(folder: Path, models: Path, *more: str) -> list[str]:
    overrides = [
        f"run.dir={folder}",
        f"run.models_dir={models}",
        f"run.steps={STEPS}",
        "run.checkpoint_every=2",
        "rollouts.workers=1",
        "rollouts.groups_per_step=2",
        "rollouts.group_size=4",
        "rollouts.max_refills=0",
        "engine.kv_cache_mib=64",
        "learner.drop_zero_variance=false",
        "episode.max_policy_errors=1",
    ]
    flags = [part for override in overrides for part in ("--set", override)]
    return [
        sys.executable,
        "-c",
        "from cluster.cli.main import main; main()",
        "train",
        "catalog",
        *flags,
        *more,
    ]


def start(folder: Path, models: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, models, *more),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        if (run / "metrics" / "metrics.jsonl").exists() and RunReader(
            run
        ).ledger().last_step >= step:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.3)
    pytest.fail(f"no step {step} within the deadline")


def test_a_killed_job_resumes_without_losing_or_repeating_a_group(tmp_path: Path) -> None:
    models = tmp_path / "models"
    run = tmp_path / "catalog"
    first = start(tmp_path, models)
    tree = psutil.Process(first.pid)
    wait_for_step(run, random.Random().randint(2, 3), first)
    family = [tree, *tree.children(recursive=True)]
    ours = [process for process in family if "Agent" not in process.name()]
    os.kill(first.pid, signal.SIGKILL)
    first.wait(30)
    _, alive = psutil.wait_procs(ours, timeout=60)
    left = [process.name() for process in alive if process.status() != "zombie"]
    assert left == [], "engines, learner, tool servers and tools die with the job"

    before = RunReader(run)
    finished = {row.episode for row in before.episodes() if row.reward is not None}
    trained_before = before.ledger().last_step

    refused = subprocess.run(
        command(tmp_path, models),
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert refused.returncode == 1
    assert "resume it" in refused.stderr
    assert "Traceback" not in refused.stderr

    second = start(tmp_path, models, "--resume", "--json")
    out, errors = second.communicate(timeout=400)
    assert second.returncode == 0, errors
    assert json.loads(out)["steps"] == STEPS

    reader = RunReader(run)
    state = reader.ledger()
    audit = state.audit()
    assert audit.violations == ()
    assert audit.states[State.LEASED] == audit.states[State.FINISHED] == 0
    by_step: dict[int, int] = {}
    for entry in state.entries.values():
        if entry.state is State.TRAINED:
            assert entry.step is not None
            by_step[entry.step] = by_step.get(entry.step, 0) + 1
    assert by_step == dict.fromkeys(range(1, STEPS + 1), 8), (
        "every step trained two whole groups, each once"
    )
    assert trained_before >= 2
    assert finished <= {row.episode for row in reader.episodes()}, "no finished episode was lost"
    unused = [state.entries[e] for e in finished if state.entries[e].state is not State.TRAINED]
    # An episode that waited for the rest of its group, over the kill, may be too old then.
    assert {entry.reason for entry in unused} <= {DropReason.STALE}, unused
