"""What the chaos tests share: a model that was taught a little, and the recipe of their runs.

    make chaos

They take about half an hour on two cores, so they run only with TRIALRUN_LONG_TESTS=1. The short
run of the same faults is tests/e2e/test_chaos.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.stage import ROOT, plain_environment
from tests.e2e.conftest import LESSONS

LONG = pytest.mark.skipif("TRIALRUN_LONG_TESTS" not in os.environ, reason="long: type `make chaos`")
TRIALRUN = (sys.executable, "-m", "cluster.cli.main")
SIZES = (
    *LESSONS,
    "rollouts.groups_per_step=4",
    "rollouts.group_size=4",
    "rollouts.max_refills=2",
    "rollouts.episodes_per_worker=6",
)


@pytest.fixture(scope="session")
def chaos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="session")
def taught(chaos_folder: Path) -> Path:
    """A tiny model that calls its tool now and then: `trialrun sft` makes it, or an earlier session
    did, and TRIALRUN_CHAOS_MODEL names its folder.
    """
    if kept := os.environ.get("TRIALRUN_CHAOS_MODEL"):
        return Path(kept)
    places = (f"run.dir={chaos_folder}", f"run.models_dir={chaos_folder / 'models'}")
    done = subprocess.run(
        [*TRIALRUN, "sft", "catalog", *places, "run.name=taught", *LESSONS],
        cwd=ROOT,
        env=plain_environment(chaos_folder),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return chaos_folder / "taught" / "model"
