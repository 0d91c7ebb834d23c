"""Scale a job at work, kill the whole of it with SIGKILL at a random moment, go on with --resume.

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
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rollout.journal import read_objects
from rollout.ledger_state import DropReason, State
from rollout.run_reader import RunReader

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
MORE_STEPS = 4
"""After the one that the kill met."""
PYTHON = [sys.executable, "-c", "from cluster.cli import main; main()"]


def command(folder: Path, steps: int, *more: str) -> list[str]:
    overrides = [
        f"run.dir={folder}",
        f"run.models_dir={folder / 'models'}",
        f"run.steps={steps}",
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
    return [*PYTHON, "train", "catalog", *flags, *more]


def start(folder: Path, steps: int, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, steps, *more),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def last_row(run: Path) -> tuple[int, float]:
    """Return the last step that has metrics, and how many workers it had."""
    if not (run / "metrics" / "metrics.jsonl").exists():
        return 0, 0.0
    rows = RunReader(run).metrics()
    return (rows[-1].step, rows[-1].values["workers"]) if rows else (0, 0.0)


def players(run: Path) -> set[str]:
    """Return the workers that played an episode of the run."""
    reader = RunReader(run)
    return set(reader.batch(reader.episodes())["worker"].to_pylist())


def wait_until(holds: Callable[[], bool], what: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        if holds():
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    pytest.fail(f"not {what} within the deadline")


def scale(run: Path, workers: int, process: subprocess.Popen[str]) -> None:
    """Ask for `workers` and wait until a step had so many."""
    asked = [*PYTHON, "scale", str(run), str(workers)]
    subprocess.run(asked, cwd=ROOT, check=True, timeout=120, capture_output=True)
    wait_until(lambda: last_row(run)[1] == workers, f"{workers} workers", process)


def test_a_killed_job_resumes_without_losing_or_repeating_a_group(tmp_path: Path) -> None:
    run = tmp_path / "catalog"
    first = start(tmp_path, 1000)
    tree = psutil.Process(first.pid)
    wait_until(lambda: last_row(run)[0] >= 1, "a step", first)
    scale(run, 2, first)
    wait_until(lambda: "worker-2" in players(run), "an episode of the second worker", first)
    scale(run, 1, first)
    steps = last_row(run)[0] + random.Random().randint(0, 2)
    wait_until(lambda: last_row(run)[0] >= steps, f"step {steps}", first)
    family = [tree, *tree.children(recursive=True)]
    ours = [process for process in family if "Agent" not in process.name()]
    os.kill(first.pid, signal.SIGKILL)
    first.wait(30)
    _, alive = psutil.wait_procs(ours, timeout=60)
    left = [process.name() for process in alive if process.status() != "zombie"]
    assert left == [], "engines, learner, tool servers and tools die with the job"

    before = RunReader(run)
    entries, trained_before = before.ledger().entries, before.ledger().last_step
    # a group that a joining worker held up may have grown stale, and is dropped as that
    dropped = {name: entry for name, entry in entries.items() if entry.state is State.DROPPED}
    assert {entry.reason for entry in dropped.values()} <= {DropReason.STALE}
    played = {row.episode for row in before.episodes() if row.reward is not None}
    finished = played - dropped.keys()
    asked = [(event["action"], event["detail"]) for event in read_objects(before.layout.control)]
    assert asked == [("scale", "2"), ("scale", "1")]
    steps = trained_before + MORE_STEPS

    refused = subprocess.run(
        command(tmp_path, steps), cwd=ROOT, text=True, capture_output=True, timeout=120, check=False
    )
    assert refused.returncode == 1
    assert "resume it" in refused.stderr
    assert "Traceback" not in refused.stderr

    second = start(tmp_path, steps, "--resume", "--json")
    out, errors = second.communicate(timeout=400)
    assert second.returncode == 0, errors
    assert json.loads(out)["steps"] == steps

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
    assert by_step == dict.fromkeys(range(1, steps + 1), 8), (
        "every step trained two whole groups, each once"
    )
    assert trained_before >= 2
    assert finished <= {row.episode for row in reader.episodes()}, "no finished episode was lost"
    ends = {(state.entries[name].state, state.entries[name].reason) for name in finished}
    # steps are quick at this size: a group that waited for a worker or a new attempt may grow stale
    allowed = {(State.TRAINED, None), (State.DROPPED, DropReason.STALE)}
    assert ends <= allowed, "every finished group was trained, or dropped for its age"
