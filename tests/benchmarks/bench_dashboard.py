"""Time and memory of the dashboard over a large run, as its own process answers over HTTP.

    python -m tests.benchmarks.big_run /tmp/big --episodes 1000000
    python -m tests.benchmarks.bench_dashboard /tmp/big

One row per route: median and 95th percentile of repeated requests in milliseconds, and the bound
that `docs/dashboard.md` states. `--live` appends a run that is written while it is looked at, and
says how late its episodes are seen.
"""

import argparse
import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cluster.dashboard.companion import CompanionOrder
from tests.benchmarks.big_run import NEEDLE, Sizes, write_big_run

_START_S = 60.0
_DETAILS_S = 3_600.0
_FILTERS = (
    "reward<0.2",
    "outcome=truncated",
    'state=dropped and reason="zero_variance"',
    'worker="worker-3" and wall_s>10',
    'reward<0.2 and tool("search").errors>0 and phase("trial").calls=0',
)


@dataclass(frozen=True)
class Served:
    """A dashboard as its own process."""

    client: httpx.Client
    process: subprocess.Popen[bytes]
    started: float

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        """Return an answer of the API."""
        found = self.client.get(f"/api/v1{path}", params=parameters)
        found.raise_for_status()
        return found

    def rss_mb(self) -> float:
        """Return the resident memory of the process in MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def cpu_s(self) -> float:
        """Return the CPU seconds of the process so far."""
        return cpu_s(self.process.pid)

    def peak_mb(self) -> float:
        """Return the largest resident memory so far in MiB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def dashboard(folder: Path, cache: Path, *, beside: bool = False) -> Iterator[Served]:
    """Start a dashboard over `folder` and yield it when it is ready.

    `beside`: as `trialrun train` starts it, with its lower priority.
    """
    started = time.perf_counter()
    environ = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = "from cluster.cli.main import main; main()"
    arguments = ["-c", command, "dashboard", str(folder), "--port", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, *(["-m", "cluster.dashboard.companion"] if beside else arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=environ,
        start_new_session=beside,
    )
    try:
        assert process.stdout is not None and process.stdin is not None
        if beside:
            order = CompanionOrder(root=folder, parent=os.getpid(), user="bench", version="0")
            process.stdin.write(order.model_dump_json().encode() + b"\n")
        if not select.select([process.stdout], [], [], _START_S)[0]:
            raise SystemExit(f"the dashboard did not start within {_START_S:g} s")
        ready = json.loads(process.stdout.readline())
        base, _, token = ready["url"].partition("/#token=")
        headers = {"authorization": f"Bearer {token}"}
        with httpx.Client(base_url=base, headers=headers, timeout=120.0) as client:
            yield Served(client, process, started)
    finally:
        process.terminate()
        process.wait(30.0)


def timed(ask: Callable[[int], object], times: int) -> tuple[float, float]:
    """Return median and 95th percentile in milliseconds of `times` calls."""
    ask(-1)
    found = []
    for number in range(times):
        start = time.perf_counter()
        ask(number)
        found.append(1_000 * (time.perf_counter() - start))
    return statistics.median(found), statistics.quantiles(found, n=20)[-1]


def index_load(served: Served, run: str) -> float:
    """Return the seconds until the first page of episodes was answered."""
    start = time.perf_counter()
    while True:
        found = served.client.get(f"/api/v1{run}/episodes")
        if found.status_code == 200:
            return time.perf_counter() - start


def details(served: Served, run: str) -> float:
    """Return the seconds until all details were read."""
    start = time.perf_counter()
    while time.perf_counter() - start < _DETAILS_S:
        coverage = served.get(f"{run}/health").json()["coverage"]
        if coverage["complete"]:
            return time.perf_counter() - start
        time.sleep(1.0)
    raise SystemExit("the details were not read in an hour")


def first_hit(served: Served, run: str, **parameters: Any) -> float:
    """Return the seconds until a search gave its first hit; the connection is then closed."""
    start = time.perf_counter()
    with served.client.stream("GET", f"/api/v1{run}/search", params=parameters) as lines:
        for line in lines.iter_lines():
            if json.loads(line)["type"] == "hit":
                return time.perf_counter() - start
    raise SystemExit("the search found nothing")


def routes(served: Served, run: str, times: int) -> Iterator[tuple[str, tuple[float, float], str]]:
    """Yield (route, median and p95, bound) for every route that has a bound."""
    page = served.get(f"{run}/episodes").json()
    step = max(page["total"] // (times + 2), 1)

    def rows(number: int) -> dict[str, Any]:
        chosen = served.get(f"{run}/episodes", filter=f"uid>={step * max(number, 0)}", limit=1,
                            sort="uid")  # fmt: skip
        return chosen.json()["rows"][0]

    some = [rows(number) for number in range(times)]
    yield "first page", timed(lambda n: served.get(f"{run}/episodes"), times), "200"
    yield (
        "second page",
        timed(lambda n: served.get(f"{run}/episodes", cursor=page["next"]), times),
        "200",
    )
    for text in _FILTERS:
        yield (
            f"filter {text}",
            timed(lambda n, text=text: served.get(f"{run}/episodes", filter=text), times),
            "200",
        )
    for sort in ("-reward", "wall_s", "-tokens", "-tool_errors"):
        yield (
            f"sort {sort}",
            timed(lambda n, sort=sort: served.get(f"{run}/episodes", sort=sort), times),
            "400",
        )
    yield "facets", timed(lambda n: served.get(f"{run}/facets"), times), ""
    yield "histogram", timed(lambda n: served.get(f"{run}/histogram"), times), ""
    yield (
        "group",
        timed(lambda n: served.get(f"{run}/group", id=some[n % times]["group"]), times),
        "100",
    )
    yield (
        "episode",
        timed(lambda n: served.get(f"{run}/episode", id=some[n % times]["episode"]), times),
        "150",
    )
    yield (
        "tokens",
        timed(lambda n: served.get(f"{run}/episode/tokens", id=some[n % times]["episode"]), times),
        "",
    )
    yield "overview", timed(lambda n: served.get(f"{run}/overview"), times), ""
    yield "tools", timed(lambda n: served.get(f"{run}/tools"), times), ""
    yield "ledger", timed(lambda n: served.get(f"{run}/ledger/summary"), times), ""
    yield "fleet", timed(lambda n: served.get(f"{run}/fleet"), times), ""


def live_lag(folder: Path, cache: Path, seconds: float, per_second: float) -> tuple[float, float]:
    """Return median and p95 of the seconds from the store of an episode to its event."""
    path = folder / "live"
    sizes = Sizes(int(seconds * per_second), seed=7)
    writer = threading.Thread(target=write_big_run, args=(path, sizes, per_second), daemon=True)
    writer.start()
    while not (path / "manifest.jsonl").exists():
        time.sleep(0.05)
    lags: list[float] = []
    with dashboard(path, cache) as served:
        run = served.get("/runs").json()["runs"][0]["id"]
        with served.client.stream("GET", "/api/v1/live", params={"run": run}) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:") and '"episodes"' in line:
                    seen = json.loads(line[5:])["episodes"]
                    lags.append(_behind(path, seen))
                if not writer.is_alive():
                    break
    found = [lag for lag in lags[3:] if lag >= 0]
    return statistics.median(found), statistics.quantiles(found, n=20)[-1]


def _behind(path: Path, seen: int) -> float:
    """Return how old the oldest stored episode is that was not seen; 0 if all were."""
    index = max((path / "index").glob("*.jsonl"))
    lines = index.read_bytes().count(b"\n")
    return 0.0 if lines <= seen else time.time() - index.stat().st_mtime


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--cache", type=Path, help="Keep the index here, for another time.")
    options = parser.parse_args()
    cache = options.cache or Path(tempfile.mkdtemp(prefix="dashboard-bench-"))
    try:
        with dashboard(options.folder, cache / "one") as served:
            run = f"/runs/{served.get('/runs').json()['runs'][0]['id']}"
            before = served.cpu_s()
            print(f"{'index load':<70} {index_load(served, run):>8.1f} s   (bound 10 s)")
            print(f"{'CPU of it':<70} {served.cpu_s() - before:>8.1f} s")
            print(f"{'peak RSS after it':<70} {served.peak_mb():>8.0f} MiB (bound 1,000 MiB)")
            print(f"{'details read':<70} {details(served, run):>8.1f} s")
            print(f"{'route':<70} {'median':>8} {'p95':>8}  bound (ms)")
            for name, (median, p95), bound in routes(served, run, options.times):
                print(f"{name:<70} {median:>8.0f} {p95:>8.0f}  {bound}")
            print(
                f"{'search, first hit':<70} {first_hit(served, run, q=NEEDLE):>8.2f} s  (bound 1)"
            )
            print(f"{'RSS; peak':<70} {served.rss_mb():>8.0f} {served.peak_mb():>8.0f} MiB")
        with dashboard(options.folder, cache / "one") as served:
            print(f"{'opened again':<70} {index_load(served, run):>8.1f} s")
        if options.live:
            with tempfile.TemporaryDirectory() as folder:
                median, p95 = live_lag(Path(folder), Path(folder) / "index", 30.0, 200.0)
            print(f"{'live lag, 200 episodes/s':<70} {median:>8.2f} {p95:>8.2f} s  (bound 1 s)")
    finally:
        if options.cache is None:
            shutil.rmtree(cache, ignore_errors=True)


if __name__ == "__main__":
    main()
