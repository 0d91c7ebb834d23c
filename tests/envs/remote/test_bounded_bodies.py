"""Replies that expand to far more than they are, from every kind of server that we read."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable

import httpx
import psutil
import pytest

from envs.config import ChatConfig, ToolServerConfig
from envs.endpoints import (
    HttpEndpoint,
    HttpOperation,
    McpHttpEndpoint,
    McpStdioEndpoint,
    OpenEnvEndpoint,
    WireArgument,
    without_address,
)
from envs.errors import InfraError, ToolServerError
from envs.remote.bounded_body import bounded_body
from envs.remote.chat_client import ChatTools, chat_tools
from envs.remote.http_client import HttpTools
from envs.remote.mcp_client import tool_set_of_mcp
from envs.remote.openenv_client import _step_tool
from envs.tools import AnswerStatus, ToolAnswer, ToolCall, ToolSet, ToolSpec
from tests.envs.remote.counted_api import Asked, api, response

QUICK = ToolServerConfig(request_timeout_s=10, call_timeout_s=5)
EXPANDED = 400 * 2**20
RSS = 100 * 2**20


def bomb(text: bytes = b" ") -> bytes:
    """Return 400 MiB as gzip."""
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(text)]
    parts += [packer.compress(b" " * 2**20) for _ in range(EXPANDED // 2**20)]
    return b"".join((*parts, packer.flush()))


BOMB = bomb(b'{"jsonrpc": "2.0", "id": 0, "result":')


async def growth(reading: Callable) -> int:
    """Return by how many bytes this process grew at most while it read."""
    process = psutil.Process()
    before = most = process.memory_info().rss
    task = asyncio.ensure_future(reading())
    while not task.done():
        await asyncio.wait((task,), timeout=0.005)
        most = max(most, process.memory_info().rss)
    task.result()
    return most - before


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream", "text/html"])
async def test_an_mcp_server(kind: str) -> None:
    reply = response(200, BOMB, content_type=kind, content_encoding="gzip")

    async def read() -> None:
        async with api(lambda _: reply) as served:
            endpoint = McpHttpEndpoint(url=f"http://127.0.0.1:{served.port}/mcp", transport="http")
            with pytest.raises(InfraError):
                await tool_set_of_mcp(endpoint, QUICK, {})

    assert await growth(read) < RSS


async def test_an_openenv_schema() -> None:
    reply = response(200, BOMB, content_type="application/json", content_encoding="gzip")

    async def read() -> None:
        async with api(lambda _: reply) as served:
            endpoint = OpenEnvEndpoint(url=f"http://user:secret@127.0.0.1:{served.port}")
            with pytest.raises(ToolServerError) as refused:
                await _step_tool(endpoint)
            assert "secret" not in str(refused.value)

    assert await growth(read) < RSS


async def test_a_chat_endpoint() -> None:
    reply = response(200, BOMB, content_type="application/json", content_encoding="gzip")

    async def read() -> None:
        async with api(lambda _: reply) as served:
            url = f"http://127.0.0.1:{served.port}"
            tools = chat_tools(ChatConfig(base_url=url, model="m", attempts=1), "judge")
            service = ChatTools(QUICK, {})
            session = await service.open_session(tools, 1, "scoring")
            (answer,) = await session.call([ToolCall(name="complete", arguments={"messages": []})])
            assert answer.status is AnswerStatus.INFRA_ERROR
            await service.close()

    assert await growth(read) < RSS


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_is_cut_off_is_no_body(encoding: str) -> None:
    whole = (gzip.compress if encoding == "gzip" else zlib.compress)(b"fine" * 100)

    async def parts(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    headers = httpx.Headers({"content-encoding": encoding})
    assert await bounded_body(headers, parts(whole), 1_000) == (b"fine" * 100, False)
    assert await bounded_body(headers, parts(whole), 10) == (b"finefinefi", True)
    with pytest.raises(InfraError, match="cut off"):
        await bounded_body(headers, parts(whole[:-1]), 1_000)


async def called(reply: bytes, **argument: str) -> tuple[ToolAnswer, Asked]:
    """Call an API that has one header argument, in a trial; return answer and request."""
    async with api(lambda _: reply) as served:
        wires = {name: WireArgument(place="header", name=name) for name in argument}
        endpoint = HttpEndpoint(
            base_url=f"http://127.0.0.1:{served.port}",
            operations=(HttpOperation(method="get", path="/x", arguments=wires),),
            allowed_hosts=(f"127.0.0.1:{served.port}",),
        )
        spec = ToolSpec(name="x", description="", parameters={"type": "object"})
        tools = ToolSet(tools=(spec,), endpoint=endpoint)
        session = await HttpTools(QUICK, {}).open_session(tools, 1, "trial")
        (told,) = await session.call([ToolCall(name="x", arguments=dict(argument))])
        await session.close()
    return told, served.asked[0]


@pytest.mark.parametrize(
    "header", ["X-HTTP-Method-Override", "X-Method-Override", "Transfer-Encoding", "Content-Length"]
)
async def test_an_argument_sets_no_method_and_no_framing(header: str) -> None:
    told, request = await called(response(200, "fine"), **{header: "DELETE", "X-Own": "kept"})
    assert told.text == "fine"
    assert "DELETE" not in request.headers.values() and request.headers["x-own"] == "kept"


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        *((f"text/plain; charset={name}", {}) for name in ("rot13", "idna", "undefined", "hex")),
        ("text/plain; charset*=utf-8''%00", {}),
        ('text/plain; charset="', {}),
        (";;;charset", {}),
        ("text/plain", {"location": "http://[::1"}),
        ("text/plain", {"set_cookie": "a=b; expires=never; domain=\x7f"}),
        ("text/plain", {"content_disposition": 'x; filename="\x85"'}),
    ],
)
@pytest.mark.parametrize("status", [200, 302, 404])
async def test_odd_headers_of_a_reply_are_typed(
    kind: str, more: dict[str, str], status: int
) -> None:
    told, _ = await called(response(status, "fine", content_type=kind, **more))
    assert told.status in (AnswerStatus.OK, AnswerStatus.TOOL_ERROR, AnswerStatus.INFRA_ERROR)


def test_no_key_is_in_what_an_episode_stores_of_a_place() -> None:
    places = [
        McpStdioEndpoint(command=("./bin/serve", "--api-key", "k3y", "postgres://u:k3y@db")).place,
        McpHttpEndpoint(url="https://user:k3y@mcp.example:8443/s/k3y/mcp?key=k3y").place,
        OpenEnvEndpoint(url="http://token:k3y@127.0.0.1:8000").place,
        HttpEndpoint(base_url="https://api.example/botk3y", operations=(), allowed_hosts=()).place,
    ]
    assert places == [
        "serve (+3 arguments)",
        "https://mcp.example:8443",
        "http://127.0.0.1:8000",
        "https://api.example",
    ]
    assert "k3y" not in json.dumps(places)
    url = "http://token:k3y@127.0.0.1:8000/"
    said = "no answer of ws://token:k3y@127.0.0.1:8000/ws or http://token:k3y@127.0.0.1:8000/schema"
    assert "k3y" not in without_address(said, url)
