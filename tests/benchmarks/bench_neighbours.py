"""What 63 well-behaved sessions notice while one session of their server misbehaves.

    python -m tests.benchmarks.bench_neighbours [--rounds 3] [--seconds 5] [--all | --probe NAME]

Calm and misbehaviour take turns within one run, so that a busy machine spoils both alike. In each
phase a 64th session is opened, calls a tool as often as the others and is closed: in a calm one a
tool like theirs. Prints the p99 of the neighbours' calls in both, and their ratio; `median` is that
of the ratios of single rounds, and what the last line goes by.
"""

import argparse
import asyncio
import gc
import statistics
import time
from dataclasses import dataclass, field

from envs.config import IsolationConfig, ToolServerConfig
from envs.server.client import RemoteSession, ToolClient
from envs.server.process import ToolServerProcess
from envs.tools import ToolCall, ToolSet, ToolSpec
from tests.envs.sandbox.probes import Probe
from tests.envs.sandbox.probes_run import chosen
from tests.envs.sandbox.probes_setting import SETTINGS

TARGET = 1.25
_DEFAULT = (
    "loop that ignores signals",
    "regex bomb",
    "big number",
    "system call storm",
    "sleep",
    "4 GiB of memory",
    "memory of many objects",
    "zip bomb",
    "fork bomb",
    "1,500 threads",
    "256 MiB of output",
    "10^6 descriptors",
    "reply flooding",
    "giant frame",
    "malformed frames",
    "half a frame",
    "frames of the runner",
    "crash",
    "exit",
    "answer key in the heap",
)
_NAMES: dict[str, object] = {
    "SERVER": 2**22,
    "VICTIM": 2**22,
    "ZYGOTE": 2**22,
    "FOLDER": "/tmp/trialrun-nowhere",
    "SECRET_FILE": "/tmp/trialrun-nowhere/secret",
    "TCP_PORT": 9,
    "UDP_PORT": 9,
    "UNIX_PATH": "/tmp/trialrun-nowhere/socket",
    "ABSTRACT": "trialrun-nowhere",
    "LEAKED": 99,
    "MARK": "trialrun-nowhere",
    "MALFORMED": 0,
    "NEIGHBOUR_DREW": 0,
    "NEIGHBOUR_SCRATCH": "/tmp/trialrun-nowhere",
    "SCRATCH_BYTES": 2**22,
}
_GOOD = """
import json, re
def good(text="a1b2c3"):
    return {"digits": re.sub(r"\\D", "", text)[::-1]}
"""
_CALL = ToolCall(name="good", arguments={"text": "a1b2c3"})


@dataclass(slots=True)
class Phases:
    """Seconds per call of the neighbours, and how often the misbehaviour ran to its end."""

    calm: list[float] = field(default_factory=list)
    troubled: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    times: int = 0


def tools(name: str, source: str) -> ToolSet:
    """Return a set of one tool."""
    spec = ToolSpec(name=name, description="", parameters={})
    return ToolSet(tools=(spec,), sources=(source,), functions=(name,))


def p99_ms(seconds: list[float]) -> float:
    """Return the 99th percentile in milliseconds."""
    return statistics.quantiles(seconds, n=100)[98] * 1e3


async def steady(sessions: list[RemoteSession], until_s: float, period_s: float) -> list[float]:
    """Call every session once a period, each at its own moment, whatever the others wait for.

    A fixed timetable: with a pause after each answer, one delay would bunch the callers for good.
    """
    seconds: list[float] = []
    start_s = time.perf_counter()

    async def one(session: RemoteSession, due_s: float) -> None:
        while due_s < until_s:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            began = time.perf_counter()
            (answer,) = await session.call([_CALL])
            seconds.append(time.perf_counter() - began)
            assert answer.text == '{"digits": "321"}', answer
            due_s += period_s

    spread = enumerate(sessions)
    await asyncio.gather(*(one(s, start_s + period_s * n / len(sessions)) for n, s in spread))
    return seconds


@dataclass(slots=True)
class Crowd:
    """The neighbours, and the client that opens one more session beside them."""

    sessions: list[RemoteSession]
    beside: ToolClient
    options: argparse.Namespace

    async def phase(self, tool_set: ToolSet, call: ToolCall) -> tuple[list[float], int]:
        """Have the neighbours call while one more session makes `call` as often as they do.

        Returns the neighbours' seconds, and how often that call ended.
        """
        gc.collect()
        session = await self.beside.open_session(tool_set, 1, "execution")
        until_s = time.perf_counter() + self.options.seconds
        calls = 0

        async def keep_calling() -> None:
            nonlocal calls
            while time.perf_counter() < until_s:
                await session.call([call])
                calls += 1
                await asyncio.sleep(self.options.pause)

        calling = asyncio.create_task(keep_calling())
        seconds = await steady(self.sessions, until_s, self.options.pause)
        await session.close()
        await asyncio.gather(calling, return_exceptions=True)  # the close ends its last call
        return seconds, calls


async def measure(
    server: ToolServerProcess,
    config: ToolServerConfig,
    probes: list[Probe],
    options: argparse.Namespace,
) -> dict[str, Phases]:
    """Return what was seen by the name of the probe."""
    client, hostile = ToolClient(server.address, config), ToolClient(server.address, config)
    good = tools("good", _GOOD)
    opened = [client.open_session(good, seed, "execution") for seed in range(options.neighbours)]
    crowd = Crowd(list(await asyncio.gather(*opened)), hostile, options)
    await crowd.phase(good, _CALL)
    found = {probe.name: Phases() for probe in probes}
    gc.disable()  # the client's pauses are not the server's
    for _ in range(options.rounds):
        for probe in probes:
            phases = found[probe.name]
            calm, _ = await crowd.phase(good, _CALL)
            probing = tools("probe", probe.source(_NAMES)), ToolCall(name="probe", arguments={})
            troubled, times = await crowd.phase(*probing)
            phases.calm += calm
            phases.troubled += troubled
            phases.times += times
            phases.ratios.append(p99_ms(troubled) / p99_ms(calm))
    await hostile.close()
    await client.close()
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neighbours", type=int, default=63)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--pause", type=float, default=0.1)
    parser.add_argument("--all", action="store_true", help="every probe of profile compute")
    parser.add_argument("--probe", action="append", help="one probe, by name; may be repeated")
    options = parser.parse_args()
    names = options.probe or (() if options.all else _DEFAULT)
    probes = chosen(SETTINGS[0], "compute", names)
    config = ToolServerConfig(isolation=IsolationConfig(required="seccomp"))
    with ToolServerProcess(config) as server:
        found = asyncio.run(measure(server, config, probes, options))
    heads = "".join(f"{head:>8}" for head in ("calm", "then", "ratio", "median", "ran"))
    print(f"{'p99 of the neighbours, ms':36}{heads}")
    for name, phases in found.items():
        calm, troubled = p99_ms(phases.calm), p99_ms(phases.troubled)
        median = statistics.median(phases.ratios)
        numbers = f"{calm:8.2f}{troubled:8.2f}{troubled / calm:8.2f}{median:8.2f}"
        print(f"{name:36}{numbers}{phases.times:8d}")
    over = [name for name, p in found.items() if statistics.median(p.ratios) > TARGET]
    print(f"over {TARGET}: {', '.join(over) or 'none'}")


if __name__ == "__main__":
    main()
