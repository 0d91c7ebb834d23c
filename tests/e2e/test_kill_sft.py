"""Kill an SFT with SIGKILL, once while its teacher plays and once while it learns, and resume it.

The SFT that nobody disturbed is the one that taught the model of the other tests.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.lifecycle.retention import whole_checkpoints
from rollout.store.run_layout import RunLayout
from rollout.store.run_reader import RunReader
from tests.e2e.conftest import LESSONS, Lessons

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


class Sft:
    """The command at work; what it says goes to a file, which what it started may outlive."""

    def __init__(self, folder: Path, name: str, *more: str) -> None:
        places = (f"run.dir={folder}", f"run.models_dir={folder / 'models'}", f"run.name={name}")
        program = [sys.executable, "-c", "from cluster.cli.main import main; main()"]
        command = [*program, "sft", "catalog", *places, *LESSONS]
        self._said = folder / f"{name}.txt"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [*command, "--json", *more],
                cwd=ROOT,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill_when(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not ready():
            assert self._process.poll() is None, self._said.read_text()
            assert time.monotonic() < deadline, "it never came so far"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.2)
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def finish(self) -> dict[str, Any]:
        code = self._process.wait(240)
        said = self._said.read_text()
        assert code == 0, said
        return json.loads(said.splitlines()[-1])


def test_a_killed_sft_ends_in_the_same_weights_as_one_that_was_not(lessons: Lessons) -> None:
    folder, whole = lessons.folder, RunLayout(lessons.folder / "taught")
    run = RunLayout(folder / "killed")
    teacher = run.root / "teacher"

    def played() -> int:
        return len(RunReader(teacher).episodes()) if RunLayout(teacher).run_json.exists() else 0

    Sft(folder, "killed").kill_when(lambda: played() > 20)
    kept = {row.episode: row.started_at for row in RunReader(teacher).episodes()}
    every_episode = len(RunReader(whole.teacher).episodes())
    assert 20 < len(kept) < every_episode
    Sft(folder, "killed", "--resume").kill_when(lambda: bool(whole_checkpoints(run.checkpoints)))
    episodes = {row.episode: row.started_at for row in RunReader(teacher).episodes()}
    assert len(episodes) == every_episode
    assert episodes.items() >= kept.items(), "what was finished was not played again"
    assert not run.model.exists()

    told = Sft(folder, "killed", "--resume").finish()
    weights = "model.safetensors"
    assert (run.model / weights).read_bytes() == (whole.model / weights).read_bytes()
    assert whole_checkpoints(run.checkpoints) == [], "the model is whole"
    assert learnt(run) == learnt(whole)
    losses = [values["loss"] for values in learnt(run)]
    assert [told[key] for key in ("steps", "first_loss", "last_loss")] == [
        len(losses),
        losses[0],
        losses[-1],
    ]


def learnt(run: RunLayout) -> list[dict[str, float]]:
    """Return what was measured at each step, without its times."""
    return [
        {
            name: value
            for name, value in row.values.items()
            if name not in ("seconds", "sequence_tokens_per_s")
        }
        | {"step": row.step}
        for row in RunReader(run.root).metrics()
    ]
