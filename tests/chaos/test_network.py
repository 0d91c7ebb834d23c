"""A run across nodes that are network namespaces with real addresses and a /dev/shm each.

First across two nodes, of which one is cut off for less than the deadlines allow. Then a third one
joins, and is cut off for a minute: its worker is lost, the run goes on, and after the cure another
worker starts there as stale, loads the weights of the day, and plays.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.chaos.checks import log_lines, objects, replay
from tests.chaos.conftest import LONG, SIZES, TRIALRUN
from tests.chaos.namespaces import Network, Node, network, why_not
from tests.chaos.processes import command_of
from tests.chaos.stage import RAY, ROOT, Looped, kill_below, plain_environment
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(2400),
    LONG,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

PORT = 6379
SHORT_CUT_S, CUT_S = 8.0, 60.0
GROUPS = 4


@dataclass
class Nodes:
    """Ray nodes in namespaces, and a run across them."""

    folder: Path
    scratch: Path
    net: Network
    environment: dict[str, str]
    rays: dict[str, Looped] = field(default_factory=dict)
    driver: subprocess.Popen[bytes] | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def head(self) -> Node:
        return self.net.nodes[0]

    @property
    def run(self) -> Path:
        return self.folder / "across"

    def start_ray(self, node: Node, cpus: int) -> None:
        is_head = node is self.head
        place = ("--head", f"--port={PORT}", "--include-dashboard=false")
        command = node.command(
            *(RAY, "start", "--block", f"--num-cpus={cpus}", "--disable-usage-stats"),
            *(place if is_head else (f"--address={self.head.address}:{PORT}",)),
            *(f"--node-ip-address={node.address}", f"--temp-dir={self.scratch / node.name}"),
            "--object-store-memory=100000000",
        )
        log = self.folder / f"{node.name}.log"
        self.rays[node.name] = Looped(command, self.environment, self.folder, log)

    def train(self, model: Path, workers: int) -> None:
        places = (f"run.dir={self.folder}", f"run.models_dir={self.folder / 'models'}")
        recipe = (
            *("run.name=across", f"model.path={model}", *places, *SIZES, "run.steps=100000"),
            # Few episodes at once: they would take the time that other workers need to start.
            *("rollouts.episodes_per_worker=2", "rollouts.group_size=2"),
            *(f"rollouts.workers={workers}", "run.checkpoint_every=5", "engine.load_timeout_s=30"),
        )
        command = self.head.command(*TRIALRUN, "train", "catalog", "--requeue", *recipe)
        with (self.folder / "driver.out").open("ab") as out:
            self.driver = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment | {"RAY_ADDRESS": f"{self.head.address}:{PORT}"},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    # What is seen

    def holds(self, node: Node, actor: str) -> list[int]:
        """Return the processes of an actor's class on `node`."""
        found = []
        for pid in node.pids():
            try:
                if command_of(psutil.Process(pid)).startswith(f"ray::{actor}"):
                    found.append(pid)
            except psutil.NoSuchProcess:
                continue
        return found

    def step(self) -> int:
        path = self.run / "metrics" / "metrics.jsonl"
        return max((row["step"] for row in objects(path)), default=0) if path.exists() else 0

    def version_of(self, worker: str) -> int:
        """Return the newest policy version with which `worker` sampled a stored episode; -1: none.

        Read by a process of its own, for the store may be written to meanwhile.
        """
        code = (
            "import sys, json\nfrom pathlib import Path\n"
            "from rollout.store.run_reader import RunReader\n"
            "reader = RunReader(Path(sys.argv[1]))\n"
            "batch = reader.batch(reader.episodes()[-400:])\n"
            "print(max((s[-1]['version'] for w, s in zip(batch['worker'].to_pylist(), "
            "batch['spans'].to_pylist()) if w == sys.argv[2] and s), default=-1))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(self.run), worker],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    def said(self, text: str, since: float) -> list[str]:
        return [line for at, line in log_lines(self.run) if at >= int(since) and text in line]

    def wait(self, what: str, holds: object, limit_s: float = 300.0) -> float:
        """Wait until `holds()`; return the seconds that it took."""
        assert callable(holds)
        assert self.driver is not None
        began = time.monotonic()

        def ended_or_holds() -> bool:
            return bool(holds()) or self.driver.poll() is not None  # type: ignore[union-attr]

        found = wait_until(ended_or_holds, limit_s, 0.2)
        out = self.folder / "driver.out"
        assert self.driver.poll() is None, out.read_text(errors="replace")[-4000:]
        assert found, f"not within {limit_s:g} s: {what}"
        return time.monotonic() - began

    def close(self) -> None:
        if self.driver is not None and self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGTERM)
            try:
                self.driver.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.driver.pid, signal.SIGKILL)
        for ray in self.rays.values():
            ray.close()
        kill_below(self.scratch)


@pytest.fixture(scope="module")
def nodes(chaos_folder: Path, taught: Path) -> Iterator[Nodes]:
    folder, scratch = chaos_folder / "network", Path(f"/tmp/net-{os.getpid()}")
    folder.mkdir()
    scratch.mkdir()
    with ExitStack() as stack:
        net = stack.enter_context(network(("trnet1", "trnet2", "trnet3")))
        made = Nodes(folder, scratch, net, plain_environment(folder))
        stack.callback(made.close)
        made.start_ray(net.nodes[0], 2)
        made.start_ray(net.nodes[1], 2)
        made.train(taught, 3)
        yield made


def test_a_run_goes_across_two_nodes(nodes: Nodes) -> None:
    first, second, _ = nodes.net.nodes
    nodes.wait("a step with three workers", lambda: _workers(nodes) == 3, 600)
    assert nodes.holds(first, "RolloutActor") and nodes.holds(second, "RolloutActor")
    learners = [node for node in nodes.net.nodes if nodes.holds(node, "LearnerActor")]
    assert len(learners) == 1
    # Weights of the learner's node reach the other one through a relay: each has its own /dev/shm.

    def relays() -> int:
        return sum(bool(nodes.holds(node, "RelayActor")) for node in nodes.net.nodes)

    nodes.wait("a relay on each node", lambda: relays() == 2)
    nodes.wait("a worker of each node to play new weights", lambda: _versions(nodes) >= 2)


def _versions(nodes: Nodes) -> int:
    """Return the lowest newest version over the three workers."""
    return min(nodes.version_of(f"worker-{number}") for number in (1, 2, 3))


def test_a_cut_shorter_than_the_health_checks_changes_nothing(nodes: Nodes) -> None:
    cut = nodes.net.nodes[1]
    began, step = time.time(), nodes.step()
    nodes.net.cut(cut)
    assert not nodes.head.reaches(cut), "the witness of the cut"
    cut_at = time.monotonic()
    nodes.wait("the end of a short cut", lambda: time.monotonic() - cut_at > SHORT_CUT_S)
    nodes.net.heal(cut)
    assert nodes.head.reaches(cut) or nodes.head.reaches(cut), "the witness of the cure"
    nodes.wait("steps after it", lambda: nodes.step() > step + 2)
    assert nodes.said("lost after", began) == []
    assert nodes.rays[cut.name].starts == 1


def test_a_node_that_was_cut_off_for_a_minute_joins_again_and_works_on(nodes: Nodes) -> None:
    third = nodes.net.nodes[2]
    nodes.start_ray(third, 1)
    scale = [*TRIALRUN, "scale", str(nodes.run), "4"]
    subprocess.run(scale, cwd=ROOT, env=nodes.environment, check=True, capture_output=True)
    # All other nodes are full.
    nodes.wait("a worker on a third node", lambda: bool(nodes.holds(third, "RolloutActor")))
    nodes.wait("four healthy workers", lambda: _workers(nodes) == 4, 400)

    cut = third
    before, began, step = nodes.holds(cut, "RolloutActor"), time.time(), nodes.step()
    nodes.net.cut(cut)
    assert not nodes.head.reaches(cut), "the witness of the cut"
    cut_at = time.monotonic()
    nodes.figures["noticed"] = nodes.wait(
        "the loss of the workers that were cut off",
        lambda: len(nodes.said("lost after", began)) >= len(before),
    )
    nodes.wait("steps without them", lambda: nodes.step() > step + 2)
    nodes.wait("the end of the cut", lambda: time.monotonic() - cut_at > CUT_S)
    at_heal = nodes.step()
    nodes.net.heal(cut)
    nodes.figures["works again"] = nodes.wait(
        "a new worker on the node",
        lambda: set(nodes.holds(cut, "RolloutActor")) - set(before) and _workers(nodes) == 4,
        600,
    )
    nodes.figures["starts of its raylet"] = nodes.rays[cut.name].starts
    named = [int(line.split("worker-")[1].split()[0]) for line in nodes.said("lost after", began)]
    newest = max([4, *named]) + 1
    fresh = [f"worker-{number}" for number in range(newest, newest + 12)]
    nodes.wait(
        "an episode of a new worker with weights of after the cut",
        lambda: max(nodes.version_of(name) for name in fresh) >= at_heal,
        300,
    )
    assert nodes.head.reaches(cut)
    print(json.dumps(nodes.figures))


def test_nothing_was_lost(nodes: Nodes) -> None:
    assert nodes.driver is not None
    os.killpg(nodes.driver.pid, signal.SIGTERM)
    nodes.driver.wait(120)
    steps = max(step for at in replay(nodes.run, GROUPS).steps_of.values() for step in at)
    assert replay(nodes.run, GROUPS).violations(steps, ended=False) == []


def _workers(nodes: Nodes) -> int:
    """Return how many healthy workers the newest step had."""
    return (
        int(objects(nodes.run / "metrics" / "metrics.jsonl")[-1]["workers"]) if nodes.step() else 0
    )
