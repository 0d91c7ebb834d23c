"""OpenEnv's own client and validator, and verifiers' OpenEnv taskset, against `trialrun serve`."""

import json
import subprocess
from pathlib import Path

import httpx
import pytest

from envs.tasksets.catalog.environment import CatalogEnvironment, ExactMatch
from tests.interop.conftest import ServedEnvironment

pytestmark = pytest.mark.real
SCRIPTS = Path(__file__).parent / "scripts"


def answer_key() -> dict[str, str]:
    """Return question to right answer of the tasks that are served."""
    key = {}
    for task in CatalogEnvironment().tasks("train", 0, 4):
        assert isinstance(task.scorer, ExactMatch)
        key[task.question] = task.scorer.expected
    return key


def run(command: list[str], plan: object, timeout_s: float) -> str:
    """Run a foreign program; return what it says."""
    done = subprocess.run(
        command, input=json.dumps(plan), capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, done.stderr[-4_000:] + done.stdout[-4_000:]
    return done.stdout


def open_sessions(url: str) -> int:
    return httpx.get(f"{url}/health", timeout=10).json()["sessions"]


def test_openenvs_clients_play_episodes(served: ServedEnvironment, interop_bin: Path) -> None:
    script = str(SCRIPTS / "openenv_clients.py")
    said = run([str(interop_bin / "python"), script, served.url], answer_key(), 90)
    assert said.strip() == "16 episodes at once, errors, tool client: as expected"
    assert open_sessions(served.url) == 0


def test_openenvs_validator_passes(served: ServedEnvironment, interop_bin: Path) -> None:
    said = run([str(interop_bin / "openenv"), "validate", "--url", served.url, "--json"], "", 60)
    report = json.loads(said)
    assert report["passed"], report["criteria"]
    assert len(report["criteria"]) >= 6


@pytest.mark.timeout(200)
def test_verifiers_plays_episodes_with_its_openenv_taskset(
    served: ServedEnvironment, interop_bin: Path, tmp_path: Path
) -> None:
    python = str(interop_bin.parent / "verifiers" / "bin" / "python")
    key = answer_key()
    wrong = list(key)[1]
    plan = {
        "resets": [{"seed": seed, "mode": "trial"} for seed in range(2)],
        "answers": key | {wrong: "wrong"},
    }
    command = [python, str(SCRIPTS / "verifiers_episodes.py"), served.url, str(tmp_path)]
    episodes = [json.loads(line) for line in run(command, plan, 180).splitlines()]
    assert [episode["errors"] for episode in episodes] == [[], []]
    assert sorted(episode["reward"] for episode in episodes) == [0.0, 1.0]
    assert open_sessions(served.url) == 0
