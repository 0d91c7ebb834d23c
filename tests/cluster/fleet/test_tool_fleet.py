"""Tool servers of the nodes of a Ray cluster, and what a killed supervisor does to a worker."""

import asyncio
import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.fleet.balanced_tools import BalancedTools
from cluster.fleet.ray_session import ray_session
from cluster.fleet.tool_fleet import ToolFleet
from envs.errors import MissingError
from envs.tools import ToolCall, ToolSet, ToolSpec

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

TOOLS = ToolSet(
    tools=(ToolSpec(name="double", description="", parameters={"type": "object"}),),
    sources=("def double(x): return 2 * x",),
    functions=("double",),
)
DOUBLE = ToolCall(name="double", arguments={"x": 21})


def config_for(placement: str, *more: str) -> RunConfig:
    overrides = [f"cluster.tool_placement={placement}", "cluster.tool_servers_per_node=2", *more]
    return load_config("catalog", overrides)


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with ray_session(config_for("node")):
        yield


async def doubled(tools: BalancedTools) -> tuple[str, str]:
    """Return an answer and the server that gave it."""
    session = await tools.open_session(TOOLS, 0, "execution")
    try:
        return (await session.call([DOUBLE]))[0].text, session.server
    finally:
        await session.close()


@pytest.mark.parametrize("placement", ["node", "cluster"])
async def test_a_killed_supervisor_comes_back_with_new_servers(placement: str) -> None:
    config = config_for(placement)
    fleet = ToolFleet(config)
    await fleet.start()
    tools = fleet.access.tools_for("worker-1", config.tools)
    await tools.start()
    try:
        assert len(tools.session_counts) == 2
        text, first = await doubled(tools)
        assert text == "42"
        servers = [psutil.Process(int(name.rpartition(".")[2])) for name in tools.session_counts]
        on_tcp = [any(c.status == "LISTEN" for c in p.net_connections("tcp")) for p in servers]
        assert on_tcp == [placement == "cluster"] * 2
        supervisor = servers[0].ppid()
        assert supervisor == servers[1].ppid() != os.getpid()
        os.kill(supervisor, signal.SIGKILL)
        _, alive = await asyncio.to_thread(psutil.wait_procs, servers, 10)
        assert alive == [], "servers die with their supervisor"
        text, second = await doubled(tools)
        assert text == "42"
        assert second.rpartition("/")[0] == first.rpartition("/")[0], "the same node"
        assert second != first
    finally:
        await tools.close()
        await fleet.close()


async def test_a_resource_that_no_node_has_is_named() -> None:
    fleet = ToolFleet(config_for("cluster", "cluster.tool_node_resource=tool-nodes"))
    with pytest.raises(MissingError, match="'tool-nodes'"):
        await fleet.start()
