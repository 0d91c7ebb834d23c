"""A deterministic on-policy job, killed at ten random points and started again, ends in the bits of
one that nobody disturbed.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil
import pytest

from tests.chaos.checks import objects, replay, steps_without_metrics
from tests.chaos.conftest import LONG, SIZES, TRIALRUN
from tests.chaos.stage import ROOT, plain_environment
from tests.waiting import lives, wait_until

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600), LONG]

STEPS, KILLS, SEED = 12, 10, 7
GROUPS, REFILLS = 4, 2
STRIDE = 2 * GROUPS + REFILLS
"""Numbers that a round may use: see cluster/scheduling/rounds.py."""
EXACT = (
    *("run.deterministic=true", "rollouts.max_staleness=0", "run.checkpoint_every=1"),
    *("rollouts.workers=1", f"run.steps={STEPS}", f"rollouts.max_refills={REFILLS}"),
)


def name_of(process: psutil.Process) -> str:
    """Return its name; empty if it has ended meanwhile."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


@dataclass
class Job:
    """The command, typed again whenever it was killed."""

    folder: Path
    name: str
    model: Path
    kills: list[str] = field(default_factory=list)
    """Where the job was when it was killed, in words."""

    @property
    def run(self) -> Path:
        return self.folder / self.name

    def start(self) -> subprocess.Popen[bytes]:
        places = (f"run.dir={self.folder}", f"run.models_dir={self.folder / 'models'}")
        recipe = (f"run.name={self.name}", f"model.path={self.model}", *places, *SIZES, *EXACT)
        with (self.folder / f"{self.name}.out").open("ab") as out:
            return subprocess.Popen(
                [*TRIALRUN, "train", "catalog", "--requeue", *recipe],
                cwd=ROOT,
                env=plain_environment(self.folder),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> None:
        process = self.start()
        try:
            code = process.wait(900)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert code == 0, (self.folder / f"{self.name}.out").read_text()[-4000:]

    def kill_at(self, point: int) -> None:
        """Start it, and kill the driver with SIGKILL once it has come as far as `point`."""
        process = self.start()
        tree = psutil.Process(process.pid)
        try:
            came = wait_until(
                lambda: self.progress() >= point or process.poll() is not None, 600, 0.05
            )
            assert came and process.poll() is None, "it ended, or never came so far"
            # Ray's own agents notice later, and hold nothing of the run.
            family = [p for p in tree.children(recursive=True) if "Agent" not in name_of(p)]
            self.kills.append(f"{self.progress()} of what is recorded")
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        assert process.returncode == -signal.SIGKILL, "the witness"
        psutil.wait_procs(family, 60)
        assert not [p for p in family if lives(p)], "what a killed job started ends with it"

    def progress(self) -> int:
        """Count what is recorded and never taken back: episodes, steps, checkpoints, metrics."""
        if not (self.run / "ledger" / "events.jsonl").exists():
            return 0
        events = objects(self.run / "ledger" / "events.jsonl")
        finished = {event["episode"] for event in events if event["event"] == "finished"}
        trained = {event["step"] for event in events if event["event"] == "trained"}
        whole = [int(path.parent.name) for path in self.run.glob("checkpoints/*/complete")]
        metrics = self.run / "metrics" / "metrics.jsonl"
        steps = {row["step"] for row in objects(metrics)} if metrics.exists() else set[int]()
        return len(finished) + len(trained) + max(whole, default=0) + len(steps)


@pytest.fixture(scope="module")
def jobs(chaos_folder: Path, taught: Path) -> Iterator[tuple[Job, Job]]:
    folder = chaos_folder / "exact"
    folder.mkdir()
    whole, killed = Job(folder, "whole", taught), Job(folder, "killed", taught)
    whole.finish()
    points = sorted(Random(SEED).sample(range(1, whole.progress() - 2), KILLS))
    for point in points:
        killed.kill_at(point)
    killed.finish()
    yield whole, killed


def test_the_weights_are_the_same_bit_for_bit(jobs: tuple[Job, Job]) -> None:
    whole, killed = jobs
    assert len(killed.kills) == KILLS
    weights = [(job.run / "model" / "model.safetensors").read_bytes() for job in jobs]
    assert weights[0] == weights[1]
    assert _digests(whole) == _digests(killed)
    assert len(set(_digests(whole).values())) > 1, "something was learnt"
    print(f"killed at {killed.kills}")


def test_every_group_was_trained_once(jobs: tuple[Job, Job]) -> None:
    for job in jobs:
        assert steps_without_metrics(job.run, STEPS) == set()
        assert replay(job.run, GROUPS, STRIDE).violations(STEPS) == []
    # A job that was killed before it had recorded anything starts over.
    events = [event["event"] for event in objects(jobs[1].run / "manifest.jsonl")]
    assert events.count("recovered") >= KILLS - 1


def _digests(job: Job) -> dict[int, float]:
    """Return the digest of all weights after each step."""
    lines = (job.run / "metrics" / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["weights_digest"] for row in map(json.loads, lines)}
