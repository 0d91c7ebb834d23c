"""Kill an SFT with SIGKILL, once while its teacher plays and once while it learns; go on with
--resume.
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

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
EPISODES = 200
OVERRIDES = (
    f"teacher.episodes={EPISODES}",
    "teacher.concurrency=8",
    "sft.epochs=6",
    "sft.checkpoint_every=5",
    "sft.optimizer=muon",
    "sft.zero_stage=0",
)


class Sft:
    """The command at work; what it says goes to a file, which what it started may outlive."""

    def __init__(self, folder: Path, name: str, *more: str) -> None:
        places = (f"run.dir={folder}", f"run.models_dir={folder / 'models'}", f"run.name={name}")
        flags = [part for override in (*places, *OVERRIDES) for part in ("--set", override)]
        command = [
            sys.executable,
            "-c",
            "from cluster.cli.main import main; main()",
            "sft",
            "catalog",
        ]
        self._said = folder / f"{name}.txt"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [*command, *flags, "--json", *more],
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
                self._process.wait(0.02)
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def finish(self) -> dict[str, Any]:
        code = self._process.wait(240)
        said = self._said.read_text()
        assert code == 0, said
        return json.loads(said.splitlines()[-1])


def test_a_killed_sft_ends_in_the_same_weights_as_one_that_was_not(tmp_path: Path) -> None:
    run, other = RunLayout(tmp_path / "killed"), RunLayout(tmp_path / "whole")
    teacher = run.root / "teacher"

    def played() -> int:
        return len(RunReader(teacher).episodes()) if RunLayout(teacher).run_json.exists() else 0

    undisturbed = Sft(tmp_path, "whole")
    Sft(tmp_path, "killed").kill_when(lambda: played() > 20)
    kept = {row.episode: row.started_at for row in RunReader(teacher).episodes()}
    assert 20 < len(kept) < EPISODES
    Sft(tmp_path, "killed", "--resume").kill_when(lambda: bool(whole_checkpoints(run.checkpoints)))
    episodes = {row.episode: row.started_at for row in RunReader(teacher).episodes()}
    assert len(episodes) == EPISODES
    assert episodes.items() >= kept.items(), "what was finished was not played again"
    assert not run.model.exists()

    told = Sft(tmp_path, "killed", "--resume").finish()
    without = undisturbed.finish()
    assert {**told, "model": ""} == {**without, "model": ""}
    weights = "model.safetensors"
    assert (run.model / weights).read_bytes() == (other.model / weights).read_bytes()
    assert whole_checkpoints(run.checkpoints) == [], "the model is whole"
    steps = [row.step for row in RunReader(run.root).metrics()]
    assert steps == list(range(1, int(told["steps"]) + 1))
