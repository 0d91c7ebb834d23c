"""Several raylets on this machine, each started again when it ends, and the driver likewise.

What an orchestrator does in production: `ray start --block` in a loop, and the training command
with `--requeue` in a loop.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

import psutil
from ray.util import get_node_ip_address

from cluster.fleet.ray_environment import RAY_START_WAIT
from tests.chaos.disks import Disk
from tests.chaos.driver import Plan
from tests.chaos.faults import Target
from tests.chaos.journal import Journal
from tests.chaos.processes import command_of
from tests.waiting import lives

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
_MEMORY = ("--object-store-memory=100000000", "--disable-usage-stats")
_HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
"""Ray notices a node that does not answer after about 10 s instead of a minute."""
_START_S = 60.0


class Looped:
    """A command that is started again whenever it ends, until it is closed."""

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], folder: Path, log: Path
    ) -> None:
        self._command, self._environment, self._folder, self._log = (
            command,
            environment,
            folder,
            log,
        )
        self._closing = threading.Event()
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._closing.is_set():
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=self._folder,
                    env=self._environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.starts += 1
            self._process.wait()
            self._closing.wait(0.5)

    def close(self) -> None:
        self._closing.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
        self._thread.join(30)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [int(opened.getsockname()[1]) for opened in sockets]


def kill_below(folder: Path) -> None:
    """Kill the processes whose command lines name `folder`, and what they started."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        if str(folder) in command_of(process) and process.pid != os.getpid():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [process, *process.children(recursive=True)]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, 30)


def plain_environment(folder: Path) -> dict[str, str]:
    """Return the environment of programs that find no Ray of this user, and our modules."""
    kept = os.environ.get("VLLM_CACHE_ROOT") or str(Path.home() / ".cache" / "vllm")
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "VLLM_CACHE_ROOT": kept,
        "DS_ACCELERATOR": "cpu",
        # Named here, because a driver that imports Ray before it has looked for the token that
        # `ray start` makes would send none.
        "RAY_AUTH_MODE": "token",
        # Ray's own is 15: what else this machine does would decide which deadlines are missed.
        "RAY_worker_niceness": "0",
        RAY_START_WAIT: "120",
        "RAY_AUTH_TOKEN": "c" * 32,
    }


@dataclass
class Stage:
    """A Ray head without CPUs, and nodes that are started again."""

    folder: Path
    scratch: Path
    address: str
    environment: dict[str, str]
    nodes: list[Looped] = field(default_factory=list)


@contextmanager
def stage(folder: Path, cpus: Sequence[int]) -> Iterator[Stage]:
    """Start a head, and a node per entry of `cpus`, each with its own temporary folder."""
    scratch = Path(mkdtemp(prefix="chaos-", dir="/tmp"))  # the path of a Ray socket must be short
    environment = plain_environment(folder) | _HEALTH
    port, client, *agents = free_ports(3 + len(cpus))
    address = f"{get_node_ip_address()}:{port}"
    made = Stage(folder, scratch, address, environment)
    head = (
        *(RAY, "start", "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agents[0]}"),
        *("--min-worker-port=22000", "--max-worker-port=22499"),
        *(f"--temp-dir={scratch / 'head'}", *_MEMORY),
    )
    try:
        subprocess.run(
            head, cwd=folder, env=environment, check=True, capture_output=True, timeout=120
        )
        for number, count in enumerate(cpus):
            first = 22500 + 500 * number
            command = (
                *(RAY, "start", f"--address={address}", f"--num-cpus={count}", "--block"),
                *(f"--min-worker-port={first}", f"--max-worker-port={first + 499}"),
                f"--dashboard-agent-listen-port={agents[1 + number]}",
                *(f"--temp-dir={scratch / f'n{number}'}", *_MEMORY),
            )
            log = folder / f"node-{number}.log"
            made.nodes.append(Looped(command, environment, folder, log))
        yield made
    finally:
        for node in made.nodes:
            node.close()
        kill_below(scratch)
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Show:
    """How the driver of a run came and went."""

    exits: list[int]
    """Exit codes, the last one 0; a signal is negative."""
    said: str


def run_driver(made: Stage, plan: Plan, disk: Disk | None, limit_s: float) -> Show:
    """Run the driver until it ends well, started again after every death that a fault explains."""
    path, said = made.folder / "plan.json", made.folder / "driver.log"
    plan.write(path)
    journal, exits = Journal(Path(plan.journal)), []
    environment = made.environment | {"RAY_ADDRESS": made.address}
    end = time.monotonic() + limit_s
    while True:
        with said.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.driver", str(path)],
                cwd=ROOT,
                env=environment | (disk.environment if disk else {}),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            exits.append(process.wait(max(end - time.monotonic(), 1)))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        text = said.read_text(errors="replace")
        if exits[-1] == 0:
            return Show(exits, text)
        deadly = [
            number
            for number in journal.of("injected").keys() - journal.of("noticed").keys()
            if plan.schedule[number].target in (Target.DRIVER, Target.DISK)
        ]
        room = disk is not None and disk.empty()
        if not deadly:
            raise AssertionError(
                f"the driver ended with {exits[-1]}, and no fault explains it:\n{text[-6000:]}"
            )
        del room
        for number in deadly:
            journal.write(number, "noticed", saw=f"exit code {exits[-1]}")


def survivors(pids: Sequence[tuple[int, float]]) -> list[int]:
    """Return which processes, given with the time when they were hit, are still there."""
    left = []
    for pid, before in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.create_time() < before and lives(process):
                left.append(pid)
    return left
