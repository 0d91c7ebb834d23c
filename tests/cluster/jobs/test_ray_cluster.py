"""A run as a job of a Ray cluster of two nodes, submitted in both ways.

Each node has its own temporary and working folder, as two machines have; they share a file system.
The second test takes minutes and runs only by `TRIALRUN_LONG_TESTS=1`.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psutil
import pytest
from ray.util import get_node_ip_address

from cluster.jobs.directories import RunStatus, status_of
from rollout.store.ledger_state import State
from rollout.store.run_reader import RunReader

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[3]
RAY = str(Path(sys.executable).parent / "ray")
TRIALRUN = (sys.executable, "-m", "cluster.cli.main")
RECIPE = (
    "run.name=first",
    "run.checkpoint_every=1",
    "rollouts.workers=1",
    "rollouts.groups_per_step=1",
    "rollouts.group_size=2",
    "rollouts.max_refills=0",
    "rollouts.max_staleness=0",
    "engine.kv_cache_mib=64",
    "episode.max_policy_errors=1",
    "learner.drop_zero_variance=false",
)
MEMORY = ("--object-store-memory=100000000", "--disable-usage-stats")


@dataclass(frozen=True)
class Cluster:
    """Two Ray nodes, and a folder in which a user types commands."""

    api: str
    nodes: tuple[Path, Path]
    project: Path
    environment: dict[str, str]

    def run(self, *command: str, folder: Path | None = None, code: int = 0) -> str:
        """Run a command to its end; return its standard output."""
        done = subprocess.run(
            command,
            cwd=folder or self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def trialrun(self, *command: str, folder: Path | None = None) -> Any:
        """Return the JSON object that a command prints."""
        name, *rest = command
        return json.loads(self.run(*TRIALRUN, name, "--json", *rest, folder=folder))

    def wait_for(self, run: Path, what: Callable[[RunStatus], bool]) -> None:
        """Wait until the status of the run is as wanted; it is read here, which costs little."""
        until, found = time.monotonic() + 600, None
        while time.monotonic() < until:
            found = status_of(run) if (run / "run.json").exists() else None
            if found is not None and what(found):
                return
            time.sleep(0.2)
        log = self.run(*TRIALRUN, "logs", "first", "--address", self.api)
        pytest.fail(f"not within the deadline: {found}\n{log}")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(open_.getsockname()[1]) for open_ in sockets]
    for open_ in sockets:
        open_.close()
    return ports


def kill_ray(folder: Path) -> None:
    """Kill the processes of the nodes below `folder`, and what they started."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in " ".join(process.info["cmdline"] or []):
            found += [process, *process.children(recursive=True)]
    for process in found:
        if process.is_running():
            process.kill()
    psutil.wait_procs(found, 30)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    scratch = Path(mkdtemp(prefix="two-", dir="/tmp"))  # the path of a Ray socket must be short
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    kept = os.environ.get("VLLM_CACHE_ROOT") or str(Path.home() / ".cache" / "vllm")
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "VLLM_CACHE_ROOT": kept}
    folders = [tmp_path / name for name in ("head", "other", "project")]
    for folder in folders:
        folder.mkdir()
    head, dashboard, client, *agents = free_ports(5)
    made = Cluster(
        f"http://127.0.0.1:{dashboard}", (folders[0], folders[1]), folders[2], environment
    )
    try:
        made.run(
            *(RAY, "start", "--head", f"--port={head}", f"--dashboard-port={dashboard}"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agents[0]}"),
            *("--min-worker-port=20002", "--max-worker-port=20999", "--num-cpus=1"),
            *(f"--temp-dir={scratch / 'a'}", *MEMORY),
            folder=folders[0],
        )
        made.run(
            *(RAY, "start", f"--address={get_node_ip_address()}:{head}"),
            *(f"--dashboard-agent-listen-port={agents[1]}", "--num-cpus=2"),
            *("--min-worker-port=21002", "--max-worker-port=21999"),
            *(f"--temp-dir={scratch / 'b'}", *MEMORY),
            folder=folders[1],
        )
        yield made
    finally:
        kill_ray(scratch)
        shutil.rmtree(scratch, ignore_errors=True)


def test_a_run_is_submitted_and_found_from_elsewhere(cluster: Cluster) -> None:
    address, elsewhere = ("--address", cluster.api), cluster.nodes[1]
    run = cluster.project / "runs" / "first"
    recipe = (*RECIPE, "run.steps=1")
    submitted = cluster.trialrun("submit", "catalog", *address, "--no-wait", "--", *recipe)
    assert submitted["run_dir"] == str(run)
    found = cluster.trialrun("status", "first", *address, folder=elsewhere)
    assert (found["job"], found["run_dir"]) == (submitted["job"], str(run))
    refused = plain(cluster, "train", "catalog", *recipe, code=1)
    assert "Type run.dir=/SHARED/runs" in refused, "a relative place in a job of the plain way"

    cluster.wait_for(run, lambda found: found.model is not None and found.state != "running")
    found = cluster.trialrun("status", "first", folder=cluster.project)
    assert (found["state"], found["step"], found["job"]) == ("finished", 1, submitted["job"])
    assert Path(found["checkpoint"], "complete").exists()
    assert Path(found["model"], "config.json").is_file()
    assert "step 1/1" in cluster.run(*TRIALRUN, "logs", "first", *address, folder=elsewhere)
    assert left(cluster) == []


@pytest.mark.skipif("TRIALRUN_LONG_TESTS" not in os.environ, reason="set TRIALRUN_LONG_TESTS=1")
def test_a_run_goes_on_as_another_job_and_nothing_is_lost(cluster: Cluster) -> None:
    address, elsewhere = ("--address", cluster.api), cluster.nodes[1]
    run = cluster.project / "runs" / "first"
    submitted = cluster.trialrun(
        *("submit", "catalog", *address, "--no-wait"), *("--", *RECIPE, "run.steps=10000")
    )
    cluster.wait_for(run, lambda found: found.step >= 1)
    cluster.trialrun("scale", "first", "+1")
    cluster.wait_for(run, lambda found: found.newest["workers"] == 2)
    assert cluster.trialrun("scale", "first", "1", *address, folder=elsewhere)["workers"] == 1
    cluster.wait_for(run, lambda found: found.newest["workers"] == 1)
    stopped = cluster.trialrun("stop", "first", *address, folder=elsewhere)
    assert (stopped["state"], stopped["run_dir"]) == ("stopped", str(run))
    found = cluster.trialrun("status", "first")
    assert (found["job"], found["job_status"]) == (submitted["job"], "STOPPED")
    finished = {row.episode for row in RunReader(run).episodes() if row.reward is not None}
    steps = found["step"] + 1

    again = (*RECIPE, *places(cluster), f"run.steps={steps}")
    log = plain(cluster, "train", "catalog", "--requeue", "--json", *again)
    assert "continues from the checkpoint of step" in log
    assert json_of(log)["run_dir"] == str(run)
    found = cluster.trialrun("status", "first")
    assert (found["state"], found["step"]) == ("finished", steps)
    assert Path(json_of(log)["model"], "config.json").is_file()
    state = RunReader(run).ledger()
    assert state.audit().violations == ()
    trained = {name for name, entry in state.entries.items() if entry.state is State.TRAINED}
    assert finished <= trained, "what was finished before the stop was trained"
    listed = cluster.trialrun("runs", *address, folder=elsewhere)["runs"]
    assert [row["name"] for row in listed] == ["first"]
    log = plain(cluster, "train", "catalog", "--requeue", "--json", *again)
    assert f"all {steps} steps are done" in log and json_of(log)["model"] == found["model"]
    assert left(cluster) == []


def places(cluster: Cluster) -> tuple[str, str]:
    """Return where `trialrun submit` puts a run, for a command that has to say it."""
    folder = cluster.project
    return (f"run.dir={folder / 'runs'}", f"run.models_dir={folder / 'models'}")


def left(cluster: Cluster) -> list[Path]:
    """Return what was written to the folders where `ray start` was typed."""
    return [path for node in cluster.nodes for path in node.iterdir()]


def json_of(log: str) -> Any:
    return json.loads(next(line for line in log.splitlines() if line.startswith("{")))


def plain(cluster: Cluster, *command: str, code: int = 0) -> str:
    """Submit a command as `ray job submit` does; return the job's log."""
    program = (str(Path(sys.executable).parent / "trialrun"), *command)
    return cluster.run(RAY, "job", "submit", "--address", cluster.api, "--", *program, code=code)
