"""SIGKILL of each party in the middle of a call: the others notice, and nothing is left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import psutil
import pytest
import pytest_asyncio

from envs.config import IsolationConfig, ToolServerConfig
from envs.errors import ToolServerError
from envs.sandbox.pool import SandboxPool
from envs.sandbox.session import SandboxSession
from envs.server.client import RemoteSession, ToolClient
from envs.server.process import ToolServerProcess
from envs.tools import AnswerStatus, ToolAnswer, ToolCall, ToolSet, ToolSpec
from tests.waiting import lives

pytestmark = pytest.mark.real
ROOT = Path(__file__).resolve().parents[3]
CONFIG = ToolServerConfig(
    isolation=IsolationConfig(required="seccomp"), call_timeout_s=90, request_timeout_s=20
)
NOTICED_S = 10.0
"""Far below the 90 s of a call: whoever notices only then, fails."""
SOURCE = """
import os, time
def nap():
    time.sleep(80)
def pid():
    return os.getpid()
"""
TOOLS = ToolSet(
    tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in ("nap", "pid")),
    sources=(SOURCE, SOURCE),
    functions=("nap", "pid"),
)
NAP = ToolCall(name="nap", arguments={})
CLIENT = """
import asyncio, sys
from envs.server.client import ToolClient
from tests.envs.server.test_kills import CONFIG, NAP, TOOLS
async def main():
    client = ToolClient(sys.argv[1], CONFIG)
    sessions = [await client.open_session(TOOLS, seed, "trial") for seed in range(3)]
    await asyncio.gather(*(session.call([NAP]) for session in sessions))
asyncio.run(main())
"""


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until `holds`, and fail after NOTICED_S."""
    deadline = time.monotonic() + NOTICED_S
    while not holds():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


def health(server: ToolServerProcess) -> dict:
    transport = httpx.HTTPTransport(uds=server.address.removeprefix("unix:"))
    with httpx.Client(transport=transport, base_url="http://tools", timeout=NOTICED_S) as http:
        return http.get("/health").json()


def family(server: ToolServerProcess) -> list[psutil.Process]:
    """Return every process below the server: zygote and children."""
    return psutil.Process(server.pid).children(recursive=True)


async def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, NOTICED_S)
    return not alive


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ToolServerProcess]:
    with ToolServerProcess(CONFIG) as process:
        yield process


@pytest_asyncio.fixture
async def client(server: ToolServerProcess) -> AsyncIterator[ToolClient]:
    client = ToolClient(server.address, CONFIG)
    yield client
    await client.close()


async def napping(
    server: ToolServerProcess, client: ToolClient, count: int = 1
) -> list[asyncio.Task[list[ToolAnswer]]]:
    """Return calls that are under way in sessions of their own."""
    sessions: list[RemoteSession] = [
        await client.open_session(TOOLS, n, "trial") for n in range(count)
    ]
    calls = [asyncio.create_task(session.call([NAP])) for session in sessions]
    await until(lambda: health(server)["calls_running"] == count, "the calls never began")
    return calls


@pytest.mark.parametrize("which", ["outer", "inner"])
async def test_a_killed_zygote_is_noticed_and_replaced(
    server: ToolServerProcess, client: ToolClient, which: str
) -> None:
    calls = await napping(server, client, 3)
    before = family(server)
    (outer,) = psutil.Process(server.pid).children()
    victim = outer
    if which == "inner":  # with namespaces, the fork server is the first process of its own
        level = health(server)["report"]["level"]
        if level != "namespaces":
            pytest.skip("without namespaces the fork server is one process")
        (victim,) = outer.children()
    victim.kill()
    async with asyncio.timeout(NOTICED_S):
        answers = [answer for call in calls for answer in await call]
    assert [answer.status for answer in answers] == [AnswerStatus.INFRA_ERROR] * 3
    assert "fork server died" in answers[0].text
    await until(lambda: not any(map(lives, before)), "a child outlived the fork server")
    session = await client.open_session(TOOLS, 1, "trial")
    (answer,) = await session.call([ToolCall(name="pid", arguments={})])
    assert answer.status is AnswerStatus.OK
    assert health(server)["zygote_restarts"] == 1
    assert await all_gone(before), "the old fork server was never reaped"


async def test_a_killed_server_is_noticed_and_leaves_nothing(
    server: ToolServerProcess, client: ToolClient
) -> None:
    calls = await napping(server, client, 3)
    processes = family(server)
    assert len(processes) > 3
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    async with asyncio.timeout(NOTICED_S):
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, ToolServerError) for result in results), results
    assert await all_gone(processes)
    with pytest.raises(ToolServerError):
        async with asyncio.timeout(NOTICED_S):
            await client.open_session(TOOLS, 1, "trial")


async def test_the_sessions_of_a_killed_client_end(server: ToolServerProcess) -> None:
    def children() -> set[int]:
        return {process.pid for process in family(server)}

    def in_use() -> int:
        return len(children()) - health(server)["idle_children"]

    counts = deque([-1, -2, -3], maxlen=3)

    def calm() -> bool:
        counts.append(in_use())
        return len(set(counts)) == 1

    await until(calm, "the pool never fills")
    normal = counts[-1]
    process = subprocess.Popen([sys.executable, "-c", CLIENT, server.address], cwd=ROOT)
    try:
        await until(lambda: health(server)["calls_running"] == 3, "the client never called")
        busy = children()
        process.kill()
        await until(lambda: health(server)["sessions"] == 0, "its sessions live on")
        await until(lambda: health(server)["calls_running"] == 0, "its calls run on")
        await until(lambda: in_use() == normal, "a child outlived its session")
        assert len(busy - children()) >= 3
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can choose the number of a new process")
async def test_a_kill_meets_no_process_that_took_over_the_number() -> None:
    pool = SandboxPool(CONFIG, "seccomp")  # there, numbers are those of the machine
    await pool.start()
    session = SandboxSession(pool, TOOLS, seed=1)
    await session.start()
    number = int((await session.call("pid", "{}")).text)
    tool = psutil.Process(number)
    os.kill(number, signal.SIGKILL)
    await until(lambda: not tool.is_running(), "the killed child stayed")
    heir: subprocess.Popen[bytes] | None = None
    try:
        for _ in range(200):
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))
            heir = subprocess.Popen(["/bin/sleep", "60"])
            if heir.pid == number:
                break
            heir.kill()
            heir.wait()
        else:
            pytest.skip("another process took the number each time")
        session.close()
        await pool.close()
        with pytest.raises(subprocess.TimeoutExpired):
            await asyncio.to_thread(heir.wait, 0.3)
    finally:
        await pool.close()
        if heir:
            heir.kill()
            heir.wait()
