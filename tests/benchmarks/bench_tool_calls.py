"""Tool calls through the server against a process per call, measured in one run.

    python -m tests.benchmarks.bench_tool_calls [--sessions 64] [--rounds 20]

`session open` is timed in episodes of ten calls each, `at once` as one batch that empties the
pool of idle children. Wall times on a busy machine say little; the ratios of one run say more.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from envs.config import IsolationConfig, ToolServerConfig
from envs.sandbox import SandboxPool, SandboxSession
from envs.tool_client import RemoteSession, ToolClient
from envs.tool_process import ToolServerProcess
from envs.tools import ToolCall, ToolSet, ToolSpec

SOURCE = """
import json, re
def reverse_digits(text="12345"):
    return {"digits": re.sub(r"\\D", "", text)[::-1]}
"""
TOOLS = ToolSet(
    tools=(ToolSpec(name="reverse_digits", description="", parameters={}),),
    sources=(SOURCE,),
    functions=("reverse_digits",),
)
CALL = ToolCall(name="reverse_digits", arguments={"text": "a1b2c3"})
_CALLS_PER_EPISODE = 10
EXPECTED = '{"digits": "321"}'


async def median_ms(count: int, work: Callable[[], Awaitable[object]]) -> float:
    """Return the median wall time of `work` in milliseconds."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        await work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e3


def subprocess_call() -> None:
    """Run one call in an interpreter of its own: the baseline."""
    code = f"{SOURCE}\nprint(json.dumps(reverse_digits('a1b2c3')))"
    ended = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True)
    assert ended.stdout.decode().strip() == EXPECTED


async def measure_socket(rounds: int) -> float:
    """Return the median of a warm call without HTTP, in milliseconds."""
    pool = SandboxPool(ToolServerConfig(isolation=IsolationConfig(required="seccomp")))
    await pool.start()
    session = SandboxSession(pool, TOOLS, seed=1)
    await session.start()
    await session.call(CALL.name, "{}")
    result = await median_ms(rounds * 20, lambda: session.call(CALL.name, "{}"))
    await pool.close()
    return result


async def median_open_ms(client: ToolClient, count: int) -> float:
    """Return the median time to open a session, one episode of ten calls after the other."""
    seconds = []
    for seed in range(count):
        began = time.perf_counter()
        session = await client.open(TOOLS, seed, "trial")
        seconds.append(time.perf_counter() - began)
        for _ in range(_CALLS_PER_EPISODE):
            await session.call([CALL])
        await session.close()
    return statistics.median(seconds) * 1e3


async def round_of_calls(sessions: list[RemoteSession]) -> None:
    """Call every session once, all in one tick."""
    answers = await asyncio.gather(*(session.call([CALL]) for session in sessions))
    assert all(answer[0].text == EXPECTED for answer in answers)


async def measure_server(count: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Return (milliseconds at the median, items per second) by the name of what was measured."""
    config = ToolServerConfig(isolation=IsolationConfig(required="seccomp"))
    with ToolServerProcess(config) as server:
        client = ToolClient(server.address, config)
        sessions = [await client.open(TOOLS, 1, "trial")]
        await round_of_calls(sessions)
        open_ms = await median_open_ms(client, rounds)
        call_ms = await median_ms(rounds * 10, lambda: round_of_calls(sessions))
        began = time.perf_counter()
        opens = [client.open(TOOLS, seed, "trial") for seed in range(count)]
        sessions = list(await asyncio.gather(*opens))
        opens_per_s = count / (time.perf_counter() - began)
        await round_of_calls(sessions)
        batch_ms = await median_ms(rounds, lambda: round_of_calls(sessions))
        await client.close()
    return {
        "session open": (open_ms, 1e3 / open_ms),
        f"session open, {count} at once": (1e3 / opens_per_s, opens_per_s),
        "warm call": (call_ms, 1e3 / call_ms),
        f"warm call, {count} sessions batched": (batch_ms / count, count * 1e3 / batch_ms),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()

    async def baseline() -> None:
        subprocess_call()

    base_ms = asyncio.run(median_ms(options.rounds, baseline))
    rows = {"process per call (baseline)": (base_ms, 1e3 / base_ms)}
    socket_ms = asyncio.run(measure_socket(options.rounds))
    rows["warm call, socket only"] = (socket_ms, 1e3 / socket_ms)
    rows |= asyncio.run(measure_server(options.sessions, options.rounds))
    print(f"{'':40}{'ms (p50)':>10}{'per second':>12}{'x baseline':>12}")
    for name, (milliseconds, per_second) in rows.items():
        ratio = per_second / rows["process per call (baseline)"][1]
        print(f"{name:40}{milliseconds:10.3f}{per_second:12,.0f}{ratio:12.1f}")


if __name__ == "__main__":
    main()
