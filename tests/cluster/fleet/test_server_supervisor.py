"""Supervised tool servers: killed, frozen and unreachable ones; what their sessions become of."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from cluster.fleet.balanced_tools import BalancedTools
from cluster.fleet.server_supervisor import (
    Directory,
    ServerAddress,
    ServersSpec,
    ServerSupervisor,
    SupervisorTiming,
)
from envs.config import ToolServerConfig
from envs.errors import DeadlineError, InfraError, ToolServerError
from envs.tools import ToolCall, ToolSession, ToolSet, ToolSpec

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]

CONFIG = ToolServerConfig(call_timeout_s=20.0, request_timeout_s=10.0)
TIMING = SupervisorTiming(health_every_s=0.2, health_timeout_s=2.0, max_misses=2, backoff_s=0.05)
SOURCE = """
count = 0
def add(n):
    global count
    count += n
    return count
def wait():
    while True: pass
"""


def counter() -> ToolSet:
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}}
    tools = tuple(ToolSpec(name=n, description=n, parameters=parameters) for n in ("add", "wait"))
    return ToolSet(tools=tools, sources=(SOURCE, SOURCE), functions=("add", "wait"))


TOOLS = counter()
ADD = ToolCall(name="add", arguments={"n": 1})
WAIT = ToolCall(name="wait", arguments={})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers() -> AsyncIterator[ServerSupervisor]:
    made = ServerSupervisor(ServersSpec(node="node", count=2), CONFIG, TIMING)
    await made.start()
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def tools(servers: ServerSupervisor) -> AsyncIterator[BalancedTools]:
    made = BalancedTools([servers], CONFIG)
    await made.start()
    yield made
    await made.close()


async def opened(tools: BalancedTools, count: int) -> list[ToolSession]:
    return await asyncio.gather(*(tools.open_session(TOOLS, i, "execution") for i in range(count)))


async def until(holds: Callable[[], bool], limit_s: float = 60.0) -> None:
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(0.01)


def on(sessions: list[ToolSession], pid: int) -> list[ToolSession]:
    return [session for session in sessions if session.server.endswith(f".{pid}")]


async def test_a_killed_server_takes_its_own_sessions_along_and_is_replaced(
    servers: ServerSupervisor, tools: BalancedTools
) -> None:
    sessions = await opened(tools, 6)
    before = servers.pids
    assert set(tools.session_counts.values()) == {3}, "each on the least loaded"
    assert {session.server for session in sessions} == set(tools.session_counts)
    victim, survivor = before[0], before[1]
    in_flight = [asyncio.create_task(session.call([WAIT])) for session in on(sessions, victim)[:1]]
    kept = on(sessions, survivor)
    assert [(await session.call([ADD]))[0].text for session in kept] == ["1", "1", "1"]
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(ToolServerError):  # at once: a deadline would be a DeadlineError
        await in_flight[0]
    for session in on(sessions, victim):
        with pytest.raises((ToolServerError, DeadlineError)):
            await session.call([ADD])
    assert [(await session.call([ADD]))[0].text for session in kept] == ["2", "2", "2"]
    await until(lambda: victim not in servers.pids.values())
    await until(lambda: len(servers.pids) == 2 and len(tools.session_counts) == 2)
    fresh = await opened(tools, 3)
    assert on(fresh, servers.pids[0]) == fresh, "the empty server is the least loaded"
    assert (await fresh[0].call([ADD]))[0].text == "1"


async def test_a_frozen_server_is_ejected_and_its_callers_do_not_wait_for_it(
    servers: ServerSupervisor, tools: BalancedTools
) -> None:
    await until(lambda: len(servers.pids) == 2 and len(tools.session_counts) == 2)
    sessions = await opened(tools, 2)
    victim = servers.pids[0]
    os.kill(victim, signal.SIGSTOP)
    (stuck,) = on(sessions, victim)
    with pytest.raises(ToolServerError):  # ejected: waiting would be a DeadlineError
        await stuck.call([ADD])
    await until(lambda: not Path(f"/proc/{victim}").exists())
    assert "is lost: its process is stopped" in (await servers.directory(-1)).failure


async def test_a_lost_fork_server_is_named_in_the_log(
    servers: ServerSupervisor, tools: BalancedTools, caplog: pytest.LogCaptureFixture
) -> None:
    await until(lambda: len(servers.pids) == 2 and len(tools.session_counts) == 2)
    pid = servers.pids[1]
    (zygote,) = psutil.Process(pid).children()
    zygote.kill()
    await until(lambda: any("fork server" in message for message in caplog.messages))
    (message,) = [message for message in caplog.messages if "fork server" in message]
    assert message.startswith(f"tool server node.{pid} replaced its fork server")
    assert servers.pids[1] == pid


async def test_opening_moves_on_to_a_server_that_lives(servers: ServerSupervisor) -> None:
    """The directory still names a dead server; nobody has noticed yet."""

    class Stale:
        async def directory(self, known: int) -> Directory:
            if known != -1:
                await asyncio.Event().wait()
            living = (await servers.directory(-1)).servers
            gone = ServerAddress(name="gone", address="unix:/nowhere/at/all", token="")
            return Directory(7, (gone, living[0]))

    tools = BalancedTools([Stale()], CONFIG)
    await tools.start()
    try:
        sessions = await opened(tools, 3)
        assert "gone" not in {session.server for session in sessions}
        for session in sessions:
            await session.close()
        assert set(tools.session_counts.values()) == {0}
    finally:
        await tools.close()


async def test_without_any_server_opening_fails_with_the_reason() -> None:
    class Dead:
        async def directory(self, known: int) -> Directory:
            raise InfraError("the node burnt down")

    tools = BalancedTools([Dead()], CONFIG.model_copy(update={"request_timeout_s": 0.1}))
    with pytest.raises(ToolServerError, match="the node burnt down"):
        await tools.start()
    await tools.close()


async def test_servers_on_tcp_ask_for_the_token() -> None:
    servers = ServerSupervisor(
        ServersSpec(node="node", count=1, host="127.0.0.1", token="secret"), CONFIG, TIMING
    )
    await servers.start()
    try:
        (server,) = (await servers.directory(-1)).servers
        assert server.address.startswith("http://127.0.0.1:")
        arguments = Path(f"/proc/{servers.pids[0]}/cmdline").read_bytes()
        assert b"secret" not in arguments
        for token, works in (("secret", True), ("guess", False)):
            named = Directory(
                1, (ServerAddress(name=server.name, address=server.address, token=token),)
            )
            tools = BalancedTools([_Fixed(named)], CONFIG)
            await tools.start()
            if works:
                session = await tools.open_session(TOOLS, 0, "trial")
                assert (await session.call([ADD]))[0].text == "1"
            else:
                with pytest.raises(ToolServerError):
                    await tools.open_session(TOOLS, 0, "trial")
            await tools.close()
    finally:
        await servers.close()


class _Fixed:
    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def directory(self, known: int) -> Directory:
        if known == self._directory.version:
            await asyncio.Event().wait()
        return self._directory


async def test_a_server_that_cannot_start_says_why() -> None:
    plan = ServersSpec(node="node", count=1, host="203.0.113.1", token="secret")  # nobody's address
    servers = ServerSupervisor(plan, CONFIG, TIMING)
    with pytest.raises(ToolServerError, match=r"cannot listen on 203\.0\.113\.1"):
        await servers.start()
    assert servers.pids == {}
