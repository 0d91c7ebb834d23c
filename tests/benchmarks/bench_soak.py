"""Many sessions open at once, many calls, then none: what does the tool server keep?

    python -m tests.benchmarks.bench_soak [--sessions 5000] [--calls 200000]

Prints processes, descriptors and memory of server and fork server at the start, with all sessions
open, and at the end; ends with exit code 1 where the end is not like the start. A turnover of a few
hundred sessions comes before the start: it fills the pool of idle processes and loads the rest.
"""

import argparse
import asyncio
import contextlib
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from envs.config import IsolationConfig, ToolServerConfig
from envs.server.client import RemoteSession, ToolClient
from envs.server.process import ToolServerProcess
from tests.benchmarks.bench_tool_calls import CALL, TOOLS
from tests.benchmarks.tool_peers import EXPECTED

_WORKERS = 128
_WARM_UP = 256
_SETTLE_S = 30.0
_DESCRIPTORS_PER_CHILD = 2
"""In the server: a socket and a pidfd."""
_MEMORY_SLACK_MIB = 24.0
"""What the allocators of two processes may keep of thousands of sessions' bookkeeping."""
_SLACK_PER_SESSION_MIB = 0.004


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the server's processes hold; memory is the server's and the fork server's own.

    Idle children of the pool do not count, for their number changes.
    """

    processes: int
    descriptors: int
    memory_mib: float
    all_memory_mib: float


def footprint(server: ToolServerProcess) -> Footprint:
    """Count what the server and its descendants hold now, without the pool's idle children."""
    server_pid, idle = server.pid, idle_children(server)
    assert server_pid
    parents: dict[int, int] = {}
    for process in psutil.Process(server_pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ends meanwhile
            parents[process.pid] = process.ppid()
    keepers = {server_pid, *(pid for pid in parents if pid in parents.values())}
    descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in keepers)
    return Footprint(
        processes=1 + len(parents) - idle,
        descriptors=descriptors - idle * _DESCRIPTORS_PER_CHILD,
        memory_mib=sum(map(_pss_mib, keepers)),
        all_memory_mib=sum(map(_pss_mib, {server_pid, *parents})),
    )


def idle_children(server: ToolServerProcess) -> int:
    """Ask the server how many processes wait for a session."""
    transport = httpx.HTTPTransport(uds=server.address.removeprefix("unix:"))
    with httpx.Client(transport=transport, base_url="http://tools", timeout=_SETTLE_S) as http:
        return http.get("/health").json()["idle_children"]


def _pss_mib(pid: int) -> float:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return sum(int(size) for size in re.findall(r"^Pss: +(\d+) kB", rollup, re.M)) / 1_024
    return 0.0


async def call_all(sessions: Sequence[RemoteSession], calls: int) -> None:
    """Spread `calls` over `sessions`, a bounded number at a time."""
    turns = iter(range(calls))

    async def work() -> None:
        for turn in turns:
            answers = await sessions[turn % len(sessions)].call([CALL])
            assert answers[0].text == EXPECTED, answers[0]

    await asyncio.gather(*(work() for _ in range(_WORKERS)))


async def settled(server: ToolServerProcess, start: Footprint) -> Footprint:
    """Return the footprint once it is like that of the start, or at a deadline."""
    deadline = time.monotonic() + _SETTLE_S
    now = footprint(server)
    while complaints(start, now, 0) and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        now = footprint(server)
    return now


async def turn_over(
    client: ToolClient, count: int, calls: int, server: ToolServerProcess
) -> Footprint:
    """Open `count` sessions, call them and close them; return the footprint before the close."""
    began = time.perf_counter()
    opens = (client.open_session(TOOLS, seed, "trial") for seed in range(count))
    sessions = list(await asyncio.gather(*opens))
    opened_s = time.perf_counter() - began
    began = time.perf_counter()
    await call_all(sessions, calls)
    called_s = time.perf_counter() - began
    print(f"{count} opens: {opened_s:.1f} s, {count / opened_s:,.0f} per second")
    print(f"{calls} calls: {called_s:.1f} s, {calls / called_s:,.0f} per second")
    peak = footprint(server)
    await asyncio.gather(*(session.close() for session in sessions))
    return peak


async def soak(
    server: ToolServerProcess, config: ToolServerConfig, sessions: int, calls: int
) -> list[Footprint]:
    """Return the footprints at the start, with all sessions open after their calls, at the end."""
    client = ToolClient(server.address, config)
    await turn_over(client, _WARM_UP, _WARM_UP, server)
    start = await steady(server)
    peak = await turn_over(client, sessions, calls, server)
    await client.close()
    return [start, peak, await settled(server, start)]


async def steady(server: ToolServerProcess) -> Footprint:
    """Return the footprint once processes come and go no more."""
    before, now = -1, footprint(server)
    while before != now.processes:
        await asyncio.sleep(0.5)
        before, now = now.processes, footprint(server)
    return now


def complaints(start: Footprint, end: Footprint, sessions: int) -> list[str]:
    """Say what the end has more than the start."""
    found = []
    if end.processes > start.processes:
        found.append(f"{end.processes - start.processes} processes are left")
    if end.descriptors > start.descriptors:
        found.append(f"{end.descriptors - start.descriptors} descriptors are left")
    grown = end.memory_mib - start.memory_mib
    if grown > _MEMORY_SLACK_MIB + _SLACK_PER_SESSION_MIB * sessions:
        found.append(f"memory grew by {grown:.1f} MiB")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=5_000)
    parser.add_argument("--calls", type=int, default=200_000)
    options = parser.parse_args(arguments)
    config = ToolServerConfig(
        isolation=IsolationConfig(required="seccomp"),
        max_sessions=max(options.sessions, _WARM_UP),
        request_timeout_s=300,
        call_timeout_s=30,
    )
    with ToolServerProcess(config) as server:
        start, peak, end = asyncio.run(soak(server, config, options.sessions, options.calls))
    print(f"{'':24}{'start':>10}{'open':>10}{'end':>10}")
    for name, digits in (
        ("processes", 0),
        ("descriptors", 0),
        ("memory_mib", 1),
        ("all_memory_mib", 1),
    ):
        values = (float(getattr(moment, name)) for moment in (start, peak, end))
        print(f"{name:24}" + "".join(f"{value:10,.{digits}f}" for value in values))
    found = complaints(start, end, options.sessions)
    print("; ".join(found) or "nothing is left")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
