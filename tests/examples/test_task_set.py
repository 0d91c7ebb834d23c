"""The example of a task set runs as its docstring says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_of_a_task_set_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "examples/task_set.py", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *conversation, end = done.stdout.splitlines()
    assert "1. area(a, b): Measure a floor." in conversation
    assert conversation.count("tool: 42") == 2
    assert end.startswith("answered, reward 1.0, isolation ")
    assert len((tmp_path / "tasks.jsonl").read_text().splitlines()) == 5
