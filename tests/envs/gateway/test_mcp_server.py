"""The MCP gateway: sessions, typed errors, deadlines."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from envs.config import ToolServerConfig
from envs.gateway.mcp_server import McpGateway
from envs.server.wire import WireError
from envs.tools import AnswerStatus, ToolAnswer, ToolSpec
from tests.envs.server.scripted_host import TOOLS, ScriptedHost, serving

QUICK = ToolServerConfig(request_timeout_s=0.2, call_timeout_s=0.1)


@asynccontextmanager
async def gateway(host: ScriptedHost, config: ToolServerConfig = QUICK) -> AsyncIterator[str]:
    mcp = McpGateway(host, {"echoes": TOOLS}, config)
    async with mcp.serving(), serving(host, [mcp.router]) as place:
        yield f"http://{place}/mcp"


async def test_a_session_opens_at_the_first_call_and_ends_with_its_client() -> None:
    host = ScriptedHost()
    async with gateway(host) as url, asyncio.timeout(20):
        async with Client(f"{url}/echoes?purpose=trial&seed=9") as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["echo"]
            assert not host.opened
            calls = [client.call_tool("echo", {"text": "a"}) for _ in range(4)]
            answers = await asyncio.gather(*calls)
            assert [answer.is_error for answer in answers] == [False] * 4
            assert [(item.purpose, item.seed) for item in host.opened] == [("trial", 9)]
        await host.until(lambda: not host.open_ids)


async def test_what_the_policy_did_is_a_result() -> None:
    host = ScriptedHost()
    async with gateway(host) as url, asyncio.timeout(20), Client(url) as client:
        for status in (AnswerStatus.TOOL_ERROR, AnswerStatus.TIMEOUT):
            host.answer = ToolAnswer(status=status, text="no", seconds=0.1)
            answer = await client.call_tool("echo", {})
            assert answer.is_error and answer.content[0].model_dump()["text"] == "no"
        assert (await client.call_tool("echo", {"text": 3})).is_error


async def test_what_the_world_did_is_a_typed_error() -> None:
    host = ScriptedHost()
    host.refusal = WireError(kind="full", message="come back later")
    async with gateway(host) as url, asyncio.timeout(20), Client(url) as client:

        async def kind() -> str:
            with pytest.raises(MCPError) as raised:
                await client.call_tool("echo", {})
            return raised.value.data["kind"]

        assert await kind() == "full"
        host.refusal = None
        host.answer = ToolAnswer(status=AnswerStatus.INFRA_ERROR, text="child died", seconds=0)
        assert await kind() == "sandbox"
        host.delay_s = 60
        assert await kind() == "deadline"
        host.open_ids.clear()
        assert await kind() == "unknown_session"


async def test_idle_sessions_and_the_servers_end_close_tool_sessions() -> None:
    host = ScriptedHost()
    config = ToolServerConfig(session_idle_s=0.3)
    async with gateway(host, config) as url, httpx.AsyncClient() as client:

        async def post(method: str, mcp_id: str = "", **params: object) -> httpx.Response:
            headers = {"accept": "application/json, text/event-stream"}
            if mcp_id:
                headers["mcp-session-id"] = mcp_id
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            return await client.post(url, json=body, headers=headers)

        hello = {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "raw", "version": "1"},
        }
        mcp_id = (await post("initialize", **hello)).headers["mcp-session-id"]
        called = await post("tools/call", mcp_id, name="echo", arguments={})
        assert called.json()["result"]["content"][0]["text"] == "fine"
        async with asyncio.timeout(10):
            while (await post("tools/list", mcp_id)).status_code == 200:
                await asyncio.sleep(0.4)
        assert (await post("tools/list", mcp_id)).status_code == 404
        assert len(host.open_ids) == 1
    assert not host.open_ids


async def test_a_revision_without_sessions_is_refused_so_that_clients_fall_back() -> None:
    async with gateway(ScriptedHost()) as url, httpx.AsyncClient() as client:
        headers = {"accept": "application/json, text/event-stream"}
        body = {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {}}
        modern = headers | {"mcp-protocol-version": "2026-07-28"}
        reply = await client.post(url, json=body, headers=modern)
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == -32_022
        assert "2025-11-25" in reply.json()["error"]["data"]["supported"]
        for method in ("PUT", "GET", "DELETE"):
            odd = await client.request(method, url, headers=headers)
            assert 400 <= odd.status_code < 500, method
        for content in (b"", b"{", b"[]", b"\xff", b'{"jsonrpc": "2.0"}'):
            odd = await client.post(
                url, content=content, headers=headers | {"content-type": "application/json"}
            )
            assert 400 <= odd.status_code < 500, content


async def test_a_tool_that_a_call_adds_belongs_to_its_session() -> None:
    host = ScriptedHost()
    secret = ToolSpec(name="secret", description="", parameters={"type": "object"})
    async with gateway(host) as url, asyncio.timeout(20), Client(url) as one, Client(url) as other:
        host.answer = ToolAnswer(
            status=AnswerStatus.OK, text="in", seconds=0.1, tools=(*TOOLS.tools, secret)
        )
        await one.call_tool("echo", {"text": "a"})
        host.answer = ToolAnswer(status=AnswerStatus.OK, text="42", seconds=0.1)
        assert [tool.name for tool in (await one.list_tools()).tools] == ["echo", "secret"]
        assert (await one.call_tool("secret", {})).content[0].model_dump()["text"] == "42"
        with pytest.raises(MCPError, match="no tool 'secret'"):
            await other.call_tool("secret", {})


HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "raw", "version": "1"},
}


def rpc(method: str, **params: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


async def test_one_client_cannot_keep_all_sessions() -> None:
    host = ScriptedHost()
    config = ToolServerConfig(max_sessions=4)
    headers = {"accept": "application/json, text/event-stream"}
    async with (
        asyncio.timeout(20),
        gateway(host, config) as url,
        httpx.AsyncClient(headers=headers) as client,
        Client(url) as first,
    ):
        await first.call_tool("echo", {"text": "a"})
        for _ in range(20):  # each opens a session, and none calls a tool
            assert (await client.post(url, json=rpc("initialize", **HELLO))).status_code == 200
        async with Client(url) as late:
            assert not (await late.call_tool("echo", {"text": "a"})).is_error
            assert not (await first.call_tool("echo", {"text": "a"})).is_error
        assert len(host.opened) == 2


async def test_a_message_of_faults_is_refused_before_it_is_read() -> None:
    many = 60_000
    keys = {f"k{number}": 0 for number in range(many)}
    headers = {"accept": "application/json, text/event-stream"}
    async with gateway(ScriptedHost()) as url, httpx.AsyncClient(headers=headers) as client:
        for body in (
            rpc("initialize") | keys,
            rpc("initialize", **(HELLO | {"capabilities": {"experimental": keys}})),
            rpc("tools/list", **keys),
            rpc("tools/call", name="echo", arguments=keys),
            rpc("tools/call", name="echo", arguments={"text": [0] * many}),
            [rpc("tools/list")] * many,
        ):
            async with asyncio.timeout(10):
                refused = await client.post(url, json=body)
            assert refused.status_code == 400, refused.text
            assert refused.json()["error"]["code"] in (-32_600, -32_700)
            assert len(refused.text) < 1_000
