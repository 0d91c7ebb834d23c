"""Tool sets of every kind through one service, an adapted foreign server among them."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from envs.config import ToolServerConfig
from envs.endpoints import HttpEndpoint, HttpOperation, McpStdioEndpoint, OpenEnvEndpoint
from envs.errors import ConfigError, ToolServerError
from envs.evidence import READ_STATE
from envs.services.composite import CompositeTools
from envs.services.router import ToolRouter, listed_tools
from envs.services.scripted import ScriptedTools
from envs.tools import (
    Adaptation,
    AnswerStatus,
    CallRule,
    ToolAnswer,
    ToolCall,
    ToolService,
    ToolSet,
    ToolSpec,
)

HERE = Path(__file__).resolve().parents[1]
CONFIG = ToolServerConfig()
RAW = McpStdioEndpoint(command=(sys.executable, "-I", str(HERE / "remote" / "raw_mcp_server.py")))


def scripted() -> ScriptedTools:
    return ScriptedTools(
        lambda call, _: ToolAnswer(status=AnswerStatus.OK, text=f"code {call.name}", seconds=0.0)
    )


def spec(name: str) -> ToolSpec:
    return ToolSpec(name=name, description="", parameters={"type": "object"})


CODE = ToolSet(tools=(spec("echo"),), sources=("def echo(): ...",), functions=("echo",))
MCP = ToolSet(tools=(spec("echo"), spec("fail")), endpoint=RAW)


def adapted(base: ToolSet) -> ToolSet:
    rule = CallRule(target="echo", parameters={"words": "text"})
    adaptation = Adaptation(level="slight", seed=1, base=base, rules=(rule,))
    return ToolSet(tools=(spec("parrot"),), adaptation=adaptation)


async def texts(services: ToolService, tools: ToolSet, *calls: ToolCall) -> list[str]:
    session = await services.open_session(tools, 1, "execution")
    answers = await session.call(calls)
    await session.close()
    return [answer.text for answer in answers]


async def test_each_kind_goes_to_its_service() -> None:
    services = ToolRouter(scripted(), CONFIG, {})
    echo = ToolCall(name="echo", arguments={"text": "hi"})
    parrot = ToolCall(name="parrot", arguments={"words": "ho"})

    assert await texts(services, CODE, echo) == ["code echo"]
    assert await texts(services, adapted(CODE), parrot) == ["code echo"]
    assert await texts(services, MCP, echo) == ["hi"]
    assert await texts(services, adapted(MCP), parrot) == ["ho"]
    await services.close()


async def test_an_http_api_goes_to_its_service() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        endpoint = HttpEndpoint(
            base_url=f"http://{place}",
            operations=(HttpOperation(method="get", path="/echo"),),
            allowed_hosts=(place,),
        )
        tools = ToolSet(tools=(spec("echo"),), endpoint=endpoint)
        services = ToolRouter(scripted(), CONFIG, {})
        assert await texts(services, tools, ToolCall(name="echo", arguments={})) == ["hi"]
        with pytest.raises(ConfigError, match="OpenAPI document"):
            await listed_tools(endpoint, CONFIG, {})


async def test_an_openenv_environment_goes_to_its_service() -> None:
    nowhere = OpenEnvEndpoint(url="http://127.0.0.1:1")
    tools = ToolSet(tools=(spec("step"),), endpoint=nowhere)
    with pytest.raises(ToolServerError, match=r"127\.0\.0\.1:1"):
        await ToolRouter(scripted(), CONFIG, {}).open_session(tools, 1, "trial")
    with pytest.raises(ToolServerError, match=r"127\.0\.0\.1:1"):
        await listed_tools(nowhere, CONFIG, {})


async def test_servers_that_list_their_tools_are_asked() -> None:
    assert len((await listed_tools(RAW, CONFIG, {})).tools) == 10


async def test_states_of_equal_names_are_numbered() -> None:
    answered = iter(['{"openenv": {"n": 1}, "bag": 2}', '{"openenv": {"n": 3}}'])
    inner = ScriptedTools(
        lambda call, _: ToolAnswer(status=AnswerStatus.OK, text=next(answered), seconds=0.0)
    )
    places = [OpenEnvEndpoint(url=f"http://127.0.0.1:{port}") for port in (1, 2)]
    parts = [
        ToolSet(tools=(spec(name),), endpoint=place)
        for name, place in zip("ab", places, strict=True)
    ]
    both = ToolSet(tools=(*parts[0].tools, *parts[1].tools), parts=tuple(parts))
    session = await CompositeTools(inner).open_session(both, 1, "execution")
    [answer] = await session.call([READ_STATE])
    assert json.loads(answer.text) == {"openenv": {"n": 1}, "bag": 2, "openenv_2": {"n": 3}}
