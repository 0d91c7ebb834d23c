"""What a dashboard with open tabs costs a job that computes on the same machine.

    python -m tests.benchmarks.bench_dashboard_cost --rounds 6

A run is written at 200 episodes a second while one process per CPU computes, as workers and learner
do. Stretches with a dashboard and its tabs take turns with stretches without one, so that what else
the machine does is in both. The ratio is that of the times which the same work took. A tab asks for
what a page asks for: the stream of events, and with each change of step or every five seconds its
figures and rows. The dashboard is started as `trialrun train` does it.
"""

import argparse
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.benchmarks.bench_dashboard import Served, cpu_s, dashboard

_PER_SECOND = 200
_REFRESH_S = 5.0
_PAGES = ("overview", "episodes", "facets", "fleet")


def compute(done: "Synchronized[int]") -> None:
    """Multiply matrices for ever, and count the products."""
    left = np.random.default_rng(0).random((192, 192))
    while True:
        left = left @ left
        left /= np.abs(left).max()
        with done.get_lock():
            done.value += 1


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Let a run grow while the block lasts."""
    words = ["-m", "tests.benchmarks.big_run", str(folder), "--episodes", "1000000"]
    writer = subprocess.Popen([sys.executable, *words, "--per-second", str(_PER_SECOND)])
    try:
        while not (folder / "metrics" / "metrics.jsonl").exists():
            time.sleep(0.1)
        yield
    finally:
        writer.kill()
        writer.wait(10.0)


def tab(served: Served, run: str, ends: threading.Event) -> None:
    """Be a browser's tab."""
    headers = dict(served.client.headers)
    base = served.client.base_url

    def follow() -> None:
        with httpx.Client(base_url=base, headers=headers, timeout=None) as client:
            try:
                with client.stream("GET", "/api/v1/live", params={"run": run}) as lines:
                    for _ in lines.iter_lines():
                        if ends.is_set():
                            return
            except httpx.HTTPError:  # the dashboard has ended
                return

    threading.Thread(target=follow, daemon=True).start()
    with httpx.Client(base_url=base, headers=headers, timeout=60.0) as client:
        while not ends.is_set():
            for page in _PAGES:
                client.get(f"/api/v1/runs/{run}/{page}")
            ends.wait(_REFRESH_S)


@contextmanager
def watched(folder: Path, cache: Path, tabs: int) -> Iterator[Served]:
    """Open a dashboard and its tabs while the block lasts."""
    with dashboard(folder, cache, beside=True) as served:
        run = served.get("/runs").json()["runs"][0]["id"]
        ends = threading.Event()
        readers = [threading.Thread(target=tab, args=(served, run, ends)) for _ in range(tabs)]
        for reader in readers:
            reader.start()
        time.sleep(2 * _REFRESH_S)  # the index is made: that is paid once
        try:
            yield served
        finally:
            ends.set()
            for reader in readers:
                reader.join(30.0)


def signal_all(workers: Sequence[multiprocessing.Process], number: signal.Signals) -> None:
    """Let all workers stand still, or go on: a dashboard starts and ends while nothing computes."""
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, number)


def per_second(done: "Synchronized[int]", seconds: float) -> float:
    """Return how much work was done in each of the next seconds."""
    before, start = done.value, time.perf_counter()
    time.sleep(seconds)
    return (done.value - before) / (time.perf_counter() - start)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=20.0, help="Of a stretch.")
    parser.add_argument("--tabs", type=int, default=2)
    options = parser.parse_args()
    cpus = len(os.sched_getaffinity(0))
    done: Any = multiprocessing.Value("q", 0)
    workers = [multiprocessing.Process(target=compute, args=(done,)) for _ in range(cpus)]
    ratios: list[float] = []
    shares: list[float] = []
    with tempfile.TemporaryDirectory(prefix="dashboard-cost-") as folder:
        run, cache = Path(folder) / "run", Path(folder) / "cache"
        with writing(run):
            for worker in workers:
                worker.start()
            try:
                for _ in range(options.rounds):
                    alone = per_second(done, options.seconds)
                    signal_all(workers, signal.SIGSTOP)
                    with watched(run, cache, options.tabs) as served:
                        signal_all(workers, signal.SIGCONT)
                        before = served.cpu_s(), sum(cpu_s(one.pid or 0) for one in workers)
                        beside = per_second(done, options.seconds)
                        taken = served.cpu_s() - before[0]
                        computed = sum(cpu_s(one.pid or 0) for one in workers) - before[1]
                        shares.append(taken / (taken + computed))
                        signal_all(workers, signal.SIGSTOP)
                    signal_all(workers, signal.SIGCONT)
                    ratios.append(alone / beside)
            finally:
                for worker in workers:
                    worker.kill()
    low, high = min(ratios), max(ratios)
    print(f"{'time of the same work, with over without':<50} {statistics.median(ratios):.3f}")
    print(f"{'least and largest of the rounds':<50} {low:.3f} {high:.3f}")
    print(f"{'CPU that the dashboard took of the work':<50} {statistics.median(shares):.3%}")


if __name__ == "__main__":
    main()
