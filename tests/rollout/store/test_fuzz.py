"""Files of run directories, changed at random: a typed error or right data, no crash, no hang.

TRIALRUN_FUZZ sets the number of mutations of each kind of file, TRIALRUN_FUZZ_SEED their seed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rollout.store.fuzz_child import TARGETS

COUNT = int(os.environ.get("TRIALRUN_FUZZ", "150"))
SEED = os.environ.get("TRIALRUN_FUZZ_SEED", "0")
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("target", TARGETS)
def test_a_changed_file_is_an_error_or_tells_the_truth(target: str, tmp_path: Path) -> None:
    # In a process of its own: damaged Arrow data may end the process that reads it.
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.rollout.store.fuzz_child",
            target,
            SEED,
            str(COUNT),
            tmp_path,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120 + COUNT,
        check=False,
    )
    assert ended.returncode == 0, f"{(tmp_path / 'last').read_text()}: {ended.stderr[-3000:]}"
    found = json.loads(ended.stdout)
    assert sum(found.values()) == COUNT
    if target != "index":  # without it, a segment is scanned
        assert found.get("error", 0) > COUNT / 10, found
