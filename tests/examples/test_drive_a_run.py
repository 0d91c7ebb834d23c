"""The example that drives a run from Python works as written."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]


def test_the_example_collects_episodes_and_prints_their_outcomes() -> None:
    example = [sys.executable, "examples/drive_a_run.py"]
    run = subprocess.run(
        example, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "10 episodes: {'answered': 10}" in run.stdout
    assert run.stdout.count("  reward ") == 10 and "  reward 1.00  " in run.stdout
    assert "── Result " in run.stdout
