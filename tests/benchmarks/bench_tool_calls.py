"""Tool calls through the server beside a process per call and an MCP server, in one run.

    python -m tests.benchmarks.bench_tool_calls [--sessions 64] [--rounds 20] [--trials 3]

Client, server and tools share the machine. Each figure is the median of the trials. `session open`
is timed in episodes of ten calls each; `one frame per call` has a connection per session, `one
connection` has sessions that call when they please, `in step` has them call at the same time. The
MCP peer is the `mcp` package's own server and client over streamable HTTP, without a sandbox. Wall
times on a busy machine say little; the ratios of one run say more.
"""

import argparse
import asyncio
import contextlib
import re
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from envs.config import IsolationConfig, ToolServerConfig
from envs.sandbox.session import SandboxPool, SandboxSession
from envs.server.client import RemoteSession, ToolClient
from envs.server.process import ToolServerProcess
from envs.tools import ToolCall, ToolSet, ToolSpec
from tests.benchmarks.tool_peers import (
    ARGUMENTS,
    EXPECTED,
    SOURCE,
    mcp_call,
    mcp_server,
    mcp_sessions,
    subprocess_call,
)

CONFIG = ToolServerConfig(isolation=IsolationConfig(required="seccomp"))
TOOLS = ToolSet(
    tools=(ToolSpec(name="reverse_digits", description="", parameters={}),),
    sources=(SOURCE,),
    functions=("reverse_digits",),
)
CALL = ToolCall(name="reverse_digits", arguments=ARGUMENTS)
_CALLS_PER_EPISODE = 10
_MCP_ROUNDS = 3
_Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table; `at_most`/`at_least` is what the project promises."""

    name: str
    ms: float
    per_second: float
    at_most_ms: float = 0.0
    at_least_per_second: float = 0.0

    @property
    def promise(self) -> str:
        if self.at_most_ms:
            held = self.ms <= self.at_most_ms
            return f"<= {self.at_most_ms:g} ms {'held' if held else 'MISSED'}"
        if self.at_least_per_second:
            held = self.per_second >= self.at_least_per_second
            return f">= {self.at_least_per_second:,.0f}/s {'held' if held else 'MISSED'}"
        return ""


@dataclass(frozen=True, slots=True)
class Sizes:
    sessions: int
    rounds: int
    trials: int


async def timed(work: _Call) -> float:
    """Return the seconds that `work` takes."""
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def median_ms(count: int, work: _Call) -> float:
    """Return the median wall time of `work` in milliseconds."""
    return statistics.median([await timed(work) for _ in range(count)]) * 1e3


async def looped(calls: Sequence[_Call], rounds: int, trials: int) -> tuple[float, float]:
    """Run every call `rounds` times, one after the other, all side by side.

    Returns (median milliseconds of one, calls per second), each the median of the trials.
    """

    async def loop(call: _Call, into: list[float]) -> None:
        for _ in range(rounds):
            into.append(await timed(call))

    milliseconds, per_second = [], []
    for _ in range(trials):
        seconds: list[float] = []
        began = time.perf_counter()
        await asyncio.gather(*(loop(call, seconds) for call in calls))
        per_second.append(len(seconds) / (time.perf_counter() - began))
        milliseconds.append(statistics.median(seconds) * 1e3)
    return statistics.median(milliseconds), statistics.median(per_second)


async def checked_call(session: RemoteSession) -> None:
    answers = await session.call([CALL])
    assert answers[0].text == EXPECTED


async def round_of_calls(sessions: Sequence[RemoteSession]) -> None:
    """Call every session once, all in one turn of the event loop."""
    await asyncio.gather(*(checked_call(session) for session in sessions))


async def socket_figure(sizes: Sizes) -> Figure:
    """Measure a warm call without any protocol."""
    pool = SandboxPool(CONFIG)
    await pool.start()
    session = SandboxSession(pool, TOOLS, seed=1)
    await session.start()
    await session.call(CALL.name, "{}")
    result = await median_ms(sizes.rounds * 20, lambda: session.call(CALL.name, "{}"))
    await pool.close()
    return Figure("warm call, socket only", result, 1e3 / result)


async def median_open_ms(client: ToolClient, count: int) -> float:
    """Return the median time to open a session, one episode of ten calls after the other."""
    seconds = []
    for seed in range(count):
        began = time.perf_counter()
        session = await client.open_session(TOOLS, seed, "trial")
        seconds.append(time.perf_counter() - began)
        for _ in range(_CALLS_PER_EPISODE):
            await session.call([CALL])
        await session.close()
    return statistics.median(seconds) * 1e3


def idle_pss_mib(server_pid: int, count: int) -> float:
    """Return the mean proportional set size of the youngest `count` session processes."""
    family = psutil.Process(server_pid).children(recursive=True)
    youngest = sorted(family, key=lambda process: process.create_time())[-count:]
    sizes = []
    for process in youngest:
        with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            sizes += [int(size) / 1_024 for size in re.findall(r"^Pss: +(\d+) kB", rollup, re.M)]
    return statistics.fmean(sizes) if sizes else float("nan")


@contextlib.asynccontextmanager
async def clients(address: str, count: int) -> AsyncIterator[list[ToolClient]]:
    """Hold so many connections."""
    made = [ToolClient(address, CONFIG) for _ in range(count)]
    yield made
    await asyncio.gather(*(client.close() for client in made))


async def server_figures(server: ToolServerProcess, sizes: Sizes) -> tuple[list[Figure], float]:
    """Measure the native protocol; the number is MiB of PSS per idle session."""
    count, rounds = sizes.sessions, sizes.rounds
    figures = []
    async with clients(server.address, 1) as (client,):
        session = await client.open_session(TOOLS, 1, "trial")
        await checked_call(session)
        ms = await median_open_ms(client, rounds * 2)
        figures.append(Figure("session open, from the pool", ms, 1e3 / ms, at_most_ms=1.5))
        ms = await median_ms(rounds * 20, lambda: checked_call(session))
        figures.append(Figure("warm call", ms, 1e3 / ms, at_most_ms=0.5))
        began = time.perf_counter()
        opens = [client.open_session(TOOLS, seed, "trial") for seed in range(count)]
        sessions = list(await asyncio.gather(*opens))
        per_second = count / (time.perf_counter() - began)
        figures.append(Figure(f"session open, {count} at once", 1e3 / per_second, per_second))
        await round_of_calls(sessions)
        assert server.pid
        pss_mib = idle_pss_mib(server.pid, count)
        ms, per_second = await looped(
            [lambda: round_of_calls(sessions)], rounds, trials=sizes.trials
        )
        name = f"{count} sessions in step, batched"
        figures.append(Figure(name, ms, per_second * count, at_least_per_second=4_000))
        calls = [lambda session=session: checked_call(session) for session in sessions]
        name = f"{count} sessions, one connection"
        figures.append(Figure(name, *await looped(calls, rounds, sizes.trials)))
    async with clients(server.address, count) as many:
        sessions = [await client.open_session(TOOLS, 1, "trial") for client in many]
        await round_of_calls(sessions)
        calls = [lambda session=session: checked_call(session) for session in sessions]
        name = f"{count} sessions, one frame per call"
        unbatched = await looped(calls, rounds, sizes.trials)
        figures.append(Figure(name, *unbatched, at_least_per_second=2_500))
    return figures, pss_mib


async def mcp_figures(url: str, sizes: Sizes) -> list[Figure]:
    """Measure the same calls on the MCP peer."""
    async with mcp_sessions(url, sizes.sessions) as sessions:
        for session in sessions:
            await mcp_call(session)
        ms = await median_ms(sizes.rounds, lambda: mcp_call(sessions[0]))
        calls = [lambda session=session: mcp_call(session) for session in sessions]
        name = f"MCP server, {sizes.sessions} sessions"
        side_by_side = await looped(calls, _MCP_ROUNDS, sizes.trials)
        return [Figure("MCP server, warm call", ms, 1e3 / ms), Figure(name, *side_by_side)]


async def baseline(sizes: Sizes) -> Figure:
    """Measure a process per call, one at a time and two at a time; the faster counts."""

    async def in_thread() -> None:
        await asyncio.to_thread(subprocess_call)

    ms, per_second = await looped([in_thread] * 2, sizes.rounds, 1)
    return Figure("process per call, two at a time (baseline)", ms, per_second)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=3)
    options = parser.parse_args()
    sizes = Sizes(options.sessions, options.rounds, options.trials)
    base = asyncio.run(baseline(sizes))
    with mcp_server() as url:
        peers = asyncio.run(mcp_figures(url, sizes))
    socket = asyncio.run(socket_figure(sizes))
    with ToolServerProcess(CONFIG) as server:
        native, pss_mib = asyncio.run(server_figures(server, sizes))
    print(f"{'':44}{'ms (p50)':>10}{'per second':>12}{'x process':>11}{'x MCP':>8}  promise")
    for figure in (base, *peers, socket, *native):
        peer = peers[1] if "sessions" in figure.name else peers[0]
        process, mcp = (f"{figure.per_second / other.per_second:.1f}" for other in (base, peer))
        if "open" in figure.name:
            process = mcp = ""
        row = f"{figure.name:44}{figure.ms:10.3f}{figure.per_second:12,.0f}{process:>11}{mcp:>8}"
        print(f"{row}  {figure.promise}".rstrip())
    held = "held" if pss_mib <= 2.5 else "MISSED"
    print(f"PSS of an idle session after its first call: {pss_mib:.2f} MiB  <= 2.5 MiB {held}")
    ratio = native[-1].per_second / base.per_second
    print(f"calls per second, one frame per call, to a process per call: {ratio:.0f}x  >= 50x")


if __name__ == "__main__":
    main()
