"""The OpenEnv gateway: misbehaving clients and infrastructure failures."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from envs.config import ToolServerConfig
from envs.gateway.openenv_server import OpenEnvGateway
from envs.server.wire import WireError
from envs.tools import AnswerStatus, ToolAnswer, ToolSpec
from tests.envs.server.scripted_host import TOOLS, ScriptedHost, serving, task

QUICK = ToolServerConfig(request_timeout_s=0.2, call_timeout_s=0.1)
CALL = {"type": "call_tool", "tool_name": "echo", "arguments": {"text": "a"}}


@asynccontextmanager
async def gateway(
    host: ScriptedHost, config: ToolServerConfig = QUICK
) -> AsyncIterator[tuple[str, OpenEnvGateway]]:
    openenv = OpenEnvGateway(host, [task("one"), task("two")], config)
    async with openenv.serving(), serving(host, [openenv.router]) as place:
        yield place, openenv


async def ask(socket: ClientConnection, kind: str, content: object = None) -> tuple[str, dict]:
    """Send a message; return type and data of the reply."""
    message = {"type": kind} if content is None else {"type": kind, "data": content}
    await socket.send(json.dumps(message))
    reply = json.loads(await socket.recv())
    return reply["type"], reply["data"]


async def test_a_trial_has_a_session_of_its_own_which_execution_does_not_see() -> None:
    host = ScriptedHost()
    async with gateway(host) as (place, _), connect(f"ws://{place}/ws") as socket:
        _, first = await ask(socket, "reset", {"task_id": "two", "mode": "trial", "seed": 7})
        assert first["observation"]["question"] == "What is two?"
        assert [(item.purpose, item.seed) for item in host.opened] == [("trial", 7)]
        kind, early = await ask(socket, "step", {"type": "answer", "text": "yes"})
        assert (kind, early["code"]) == ("error", "EXECUTION_ERROR")
        _, called = await ask(socket, "step", CALL)
        assert called["observation"]["result"] == "fine"
        await ask(socket, "step", {"type": "begin_execution"})
        assert host.open_ids == {"session-2"}
        assert [(item.purpose, item.seed) for item in host.opened][1] == ("execution", 7)
        _, last = await ask(socket, "step", {"type": "answer", "text": "yes"})
        assert (last["reward"], last["done"]) == (1.0, True)
        assert last["metadata"] == {"reward_parts": {"exact": 1.0}}
        assert host.open_ids == set()
        kind, late = await ask(socket, "step", CALL)
        assert (kind, late["message"]) == ("error", "the episode has ended: send reset")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(AnswerStatus.TOOL_ERROR, "execution_error"), (AnswerStatus.TIMEOUT, "timeout")],
)
async def test_what_the_policy_did_is_an_observation(status: AnswerStatus, kind: str) -> None:
    host = ScriptedHost()
    host.answer = ToolAnswer(status=status, text="no", seconds=0.1)
    async with gateway(host) as (place, _), connect(f"ws://{place}/ws") as socket:
        await ask(socket, "reset", {})
        _, reply = await ask(socket, "step", CALL)
        assert reply["observation"]["error"] == {"error_type": kind, "message": "no"}
        wrong = CALL | {"arguments": {"text": 1}}
        _, reply = await ask(socket, "step", wrong)
        assert reply["observation"]["error"]["error_type"] == "invalid_args"


async def test_what_the_world_did_is_an_error_with_a_code() -> None:
    host = ScriptedHost()
    async with gateway(host) as (place, _), connect(f"ws://{place}/ws") as socket:
        host.refusal = WireError(kind="full", message="come back later")
        kind, reply = await ask(socket, "reset", {})
        assert (kind, reply["code"]) == ("error", "CAPACITY_REACHED")
        host.refusal = None
        await ask(socket, "reset", {})
        host.answer = ToolAnswer(status=AnswerStatus.INFRA_ERROR, text="child died", seconds=0)
        kind, reply = await ask(socket, "step", CALL)
        assert (kind, reply) == ("error", {"message": "child died", "code": "EXECUTION_ERROR"})
        host.delay_s = 60
        kind, reply = await ask(socket, "step", CALL)
        assert (kind, reply["message"]) == ("error", "no answer within 0.3 s")
        host.open_ids.clear()
        kind, reply = await ask(socket, "step", CALL)
        assert (kind, reply["code"]) == ("error", "SESSION_ERROR")
        host.delay_s = 0
        kind, _ = await ask(socket, "reset", {})
        assert kind == "observation"


async def test_bad_input_is_answered_and_the_conversation_goes_on() -> None:
    async with gateway(ScriptedHost()) as (place, _), connect(f"ws://{place}/ws") as socket:
        for text, code in (
            ("not json", "INVALID_JSON"),
            ("", "INVALID_JSON"),
            (b"\xff\x00", "INVALID_JSON"),
            ("[" * 100_000, "INVALID_JSON"),
            ("[]", "VALIDATION_ERROR"),
            ("{}", "UNKNOWN_TYPE"),
            ('{"type": "dance"}', "UNKNOWN_TYPE"),
            ('{"type": "step"}', "VALIDATION_ERROR"),
            ('{"type": "reset", "data": {"seed": -1}}', "VALIDATION_ERROR"),
            ('{"type": "reset", "data": {"seed": 1e400}}', "VALIDATION_ERROR"),
            ('{"type": "reset", "data": {"task_id": "none"}}', "VALIDATION_ERROR"),
            ('{"type": "mcp", "data": {"method": "x"}}', "VALIDATION_ERROR"),
            ('{"type": "state", "more": 1}', "VALIDATION_ERROR"),
        ):
            await socket.send(text)
            reply = json.loads(await socket.recv())
            assert (reply["type"], reply["data"]["code"]) == ("error", code), text
            assert reply["data"]["message"]
        await socket.send('{"type": "step", "data": {"type": "answer", "text": "\\ud800"}}')
        assert json.loads(await socket.recv())["type"] in ("error", "observation")
        assert (await ask(socket, "state"))[0] == "state"
        await socket.send('{"type": "close"}')
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1000


async def test_every_close_has_a_code() -> None:
    host = ScriptedHost()
    config = ToolServerConfig(session_idle_s=0.1, max_sessions=1)
    async with gateway(host, config) as (place, _):
        async with connect(f"ws://{place}/ws") as idle:
            async with connect(f"ws://{place}/ws") as second:
                assert json.loads(await second.recv())["data"]["code"] == "CAPACITY_REACHED"
                await second.wait_closed()
                assert second.close_code == 1013
            assert json.loads(await idle.recv())["data"]["code"] == "SESSION_ERROR"
            await idle.wait_closed()
            assert idle.close_code == 1001
        async with connect(f"ws://{place}/ws?session_id=none") as socket:
            assert json.loads(await socket.recv())["data"]["code"] == "SESSION_ERROR"
            await socket.wait_closed()
            assert socket.close_code == 1008


async def test_a_client_that_vanishes_leaves_no_session() -> None:
    host = ScriptedHost()
    async with gateway(host) as (place, _):
        socket = await connect(f"ws://{place}/ws")
        await ask(socket, "reset", {})
        assert len(host.open_ids) == 1
        socket.transport.abort()
        await host.until(lambda: not host.open_ids)


async def test_json_rpc_shares_the_session_of_a_websocket() -> None:
    host = ScriptedHost()
    async with gateway(host) as (_, openenv):
        transport = httpx.ASGITransport(openenv.plain_rpc)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:

            async def rpc(method: str, **params: object) -> dict:
                body = {"jsonrpc": "2.0", "id": 5, "method": method, "params": params}
                return (await client.post("/mcp", json=body)).json()

            created = await rpc("openenv/session/create")
            session_id = created["result"]["session_id"]
            call = {"name": "echo", "arguments": {"text": "a"}, "session_id": session_id}
            answered = await rpc("tools/call", **call)
            assert answered == {"jsonrpc": "2.0", "id": 5, "result": {"data": "fine"}}
            listed = await rpc("tools/list", session_id=session_id)
            assert [tool["name"] for tool in listed["result"]["tools"]] == ["echo"]
            for method, params, code in (
                ("tools/call", call | {"name": "nope"}, -32_602),
                ("tools/call", call | {"arguments": [1]}, -32_602),
                ("tools/call", {"name": "echo"}, -32_602),
                ("tools/list", {"session_id": 3}, -32_602),
                ("tools/list", {"session_id": "none"}, -32_000),
                ("tools/sing", {}, -32_601),
            ):
                assert (await rpc(method, **params))["error"]["code"] == code, (method, params)
            closed = await rpc("openenv/session/close", session_id=session_id)
            assert closed["result"]["closed"] and not host.open_ids
            broken = await client.post("/mcp", content=b"{")
            assert (broken.status_code, broken.json()["error"]["code"]) == (200, -32_700)
            large = await client.post("/mcp", content=b" " * (4 * 2**20 + 1))
            assert large.status_code == 413


async def test_a_tool_that_a_call_adds_is_gone_in_the_next_session() -> None:
    host = ScriptedHost()
    secret = ToolSpec(name="secret", description="", parameters={"type": "object"})
    host.answer = ToolAnswer(
        status=AnswerStatus.OK, text="fine", seconds=0.1, tools=(*TOOLS.tools, secret)
    )
    added = {"type": "call_tool", "tool_name": "secret", "arguments": {}}
    async with gateway(host) as (place, _), connect(f"ws://{place}/ws") as socket:
        await ask(socket, "reset", {"mode": "trial"})
        await ask(socket, "step", CALL)
        _, called = await ask(socket, "step", added)
        assert called["observation"]["result"] == "fine"
        await ask(socket, "step", {"type": "begin_execution"})
        _, gone = await ask(socket, "step", added)
        assert gone["observation"]["error"]["error_type"] == "tool_not_found"


async def test_messages_of_faults_are_told_soon() -> None:
    keys = {f"k{number}": 0 for number in range(60_000)}
    async with gateway(ScriptedHost()) as (place, openenv), connect(f"ws://{place}/ws") as socket:
        for kind, content in (
            ("reset", keys),
            ("step", CALL | keys),
            ("step", CALL | {"arguments": keys}),
            ("mcp", {"jsonrpc": "2.0", "method": "tools/list"} | keys),
            ("step", [0] * 60_000),
        ):
            async with asyncio.timeout(10):
                told, fault = await ask(socket, kind, content)
            assert told == "error" and len(fault["message"]) < 1_000
        await socket.send(json.dumps({"type": "state"} | keys))
        told = json.loads(await socket.recv())["data"]["code"]
        assert told in ("VALIDATION_ERROR", "INVALID_JSON")
        assert (await ask(socket, "state"))[0] == "state"
        transport = httpx.ASGITransport(openenv.plain_rpc)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"} | keys
            refused = (await client.post("/mcp", json=body)).json()["error"]
            assert refused["code"] in (-32_700, -32_600) and len(refused["message"]) < 1_000


async def test_environments_that_nobody_uses_make_room() -> None:
    host = ScriptedHost()
    config = ToolServerConfig(max_sessions=3)
    async with gateway(host, config) as (place, openenv):
        transport = httpx.ASGITransport(openenv.plain_rpc)
        async with (
            connect(f"ws://{place}/ws") as first,
            httpx.AsyncClient(transport=transport, base_url="http://server") as client,
        ):
            await ask(first, "reset", {})
            body = {"jsonrpc": "2.0", "id": 1, "method": "openenv/session/create"}
            for _ in range(10):
                assert "result" in (await client.post("/mcp", json=body)).json()
            async with connect(f"ws://{place}/ws") as second:
                assert (await ask(second, "reset", {}))[0] == "observation"
            assert (await ask(first, "state"))[0] == "state"
