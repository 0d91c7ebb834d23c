"""The official MCP client, in two generations, against `trialrun serve`."""

import asyncio
import subprocess
from pathlib import Path

import httpx
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from envs.tasksets.catalog.environment import CatalogEnvironment
from tests.interop.conftest import ServedEnvironment

pytestmark = pytest.mark.real
SCRIPTS = Path(__file__).parent / "scripts"
DEADLINE_S = 60


async def open_sessions(url: str) -> int:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{url}/health", timeout=10)).json()["sessions"]


async def test_the_official_client_lists_and_calls(served: ServedEnvironment) -> None:
    task = CatalogEnvironment().tasks("train", 0, 4)[0]
    async with asyncio.timeout(DEADLINE_S), Client(f"{served.url}/mcp") as client:
        tools = (await client.list_tools()).tools
        assert [(tool.name, tool.input_schema) for tool in tools] == [
            (tool.name, tool.parameters) for tool in task.tool_set.tools
        ]
        answers = [await client.call_tool(tool.name, {"x": "123"}) for tool in tools]
        assert any(not answer.is_error for answer in answers)
        assert await open_sessions(served.url) == 1
        wrong = await client.call_tool(tools[0].name, {"x": 1})
        assert wrong.is_error and "expected string" in str(wrong.content)
        with pytest.raises(MCPError, match="no tool 'nope'"):
            await client.call_tool("nope", {})
    assert await open_sessions(served.url) == 0


async def test_many_clients_have_sessions_of_their_own(served: ServedEnvironment) -> None:
    tasks = CatalogEnvironment().tasks("train", 0, 4)

    async def names(index: int) -> list[str]:
        path = tasks[index].id if index % 2 else tasks[index].tool_set.digest
        url = f"{served.url}/mcp/{path}?purpose=trial&seed={index}"
        async with Client(url) as client:
            listed = [tool.name for tool in (await client.list_tools()).tools]
            await client.call_tool(listed[0], {"x": "123"})
            return listed

    async with asyncio.timeout(DEADLINE_S):
        found = await asyncio.gather(*(names(index % 4) for index in range(8)))
    expected = [[tool.name for tool in task.tool_set.tools] for task in tasks]
    assert found == expected * 2
    assert await open_sessions(served.url) == 0


async def test_what_does_not_exist_is_refused(served: ServedEnvironment) -> None:
    async with httpx.AsyncClient(timeout=10) as client:
        headers = {"accept": "application/json, text/event-stream"}
        for query, status in (
            ("/no-such-task", 404),
            ("?purpose=play", 400),
            ("?seed=-1", 400),
            ("", 400),
        ):
            reply = await client.post(f"{served.url}/mcp{query}", json={}, headers=headers)
            assert reply.status_code == status, reply.text
            assert reply.json()["error"]["message"]
        foreign = headers | {"origin": "http://evil.example"}
        reply = await client.post(f"{served.url}/mcp", json={}, headers=foreign)
        assert reply.status_code == 403


def test_the_client_of_mcp_1_lists_and_calls(served: ServedEnvironment, interop_bin: Path) -> None:
    script = str(SCRIPTS / "mcp1_client.py")
    done = subprocess.run(
        [str(interop_bin / "python"), script, f"{served.url}/mcp"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    assert done.stdout.split() == ["4", "tools,", "called"]
