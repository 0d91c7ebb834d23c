"""What MCP servers do beside answering with text: errors, other content, new tools, odd lists."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from mcp.server.mcpserver import MCPServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.config.environments import environment_of
from cluster.config.run_config import RunConfig
from envs.config import ToolServerConfig
from envs.endpoints import McpHttpEndpoint, McpStdioEndpoint
from envs.errors import ConfigError, DeadlineError, ToolServerError
from envs.remote.endpoint_session import EndpointSession
from envs.remote.mcp_client import McpEndpoint, McpTools, tool_set_of_mcp
from envs.tasksets.file.config import FileEnvConfig
from envs.tools import AnswerStatus, ToolAnswer, ToolCall, ToolSet

HERE = Path(__file__).resolve().parent
CONFIG = ToolServerConfig(call_timeout_s=5.0, request_timeout_s=20.0)
VARIABLES = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "TOKEN": "t0k3n-of-mine"}
OK, TOOL, INFRA = AnswerStatus.OK, AnswerStatus.TOOL_ERROR, AnswerStatus.INFRA_ERROR


def odd(kind: str, *arguments: str, **given: object) -> McpStdioEndpoint:
    command = (sys.executable, "-I", str(HERE / "odd_mcp_server.py"), kind, *arguments)
    return McpStdioEndpoint.model_validate({"command": command, **given})


def listed(endpoint: McpEndpoint) -> Awaitable[ToolSet]:
    return tool_set_of_mcp(endpoint, CONFIG, VARIABLES)


@asynccontextmanager
async def opened(endpoint: McpEndpoint) -> AsyncIterator[EndpointSession]:
    tool_set = await listed(endpoint)
    session = await McpTools(CONFIG, VARIABLES).open_session(tool_set, 1, "execution")
    try:
        yield session
    finally:
        await session.close()


async def ask(session: EndpointSession, name: str) -> ToolAnswer:
    return (await session.call([ToolCall(name=name, arguments={})]))[0]


async def test_errors_of_json_rpc_are_answers() -> None:
    async with opened(odd("errors")) as session:
        for name in ("internal", "own", "unknown", "zero"):
            answer = await ask(session, name)
            assert (answer.status, answer.text) == (TOOL, f"fault {name}")
        assert (await ask(session, "gone")).text == 'fault gone ({"why": "gone"})'


async def test_a_server_that_dies_says_why_without_its_secrets() -> None:
    async with opened(odd("dying", variables=("TOKEN",))) as session:
        answer = await ask(session, "die")
    assert answer.status is INFRA
    assert "it ended with exit code 3; it said last: TOKEN is [TOKEN] | password=[hidden]" in (
        answer.text
    )
    with pytest.raises(
        ToolServerError, match=r"exit code 1; it said last: Error: TOKEN is not set"
    ):
        await listed(odd("crash"))


async def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(ConfigError, match="environment variable ELSEWHERE"):
        await listed(odd("errors", variables=("ELSEWHERE",)))


SHOWN = {
    "link": "Found:\n"
    "[resource link quarterly <reports://q3>, application/pdf, 12 bytes: By quarter]",
    "resources": "[resource <file:///a.txt>]\nthe text\n"
    "[resource <file:///a.bin>, application/pdf, 3 bytes]",
    "media": "[image image/png, 3 bytes]\n[audio audio/wav, 1 bytes]",
    "future": '{"type": "hologram", "depth": 3}',
    "beside": '2 items.\n{"items": [1, 2]}',
    "same": '{"b": [1], "a": 2}',
    "wrapped": "41",
    "list": "a\nb",
    "alone": '{"a": 1}',
}


async def test_every_kind_of_content_is_told() -> None:
    async with opened(odd("content")) as session:
        answers = {name: await ask(session, name) for name in SHOWN}
    assert {name: answer.text for name, answer in answers.items()} == SHOWN
    assert {answer.status for answer in answers.values()} == {OK}


async def test_a_new_tool_can_be_called_and_an_old_one_goes() -> None:
    async with opened(odd("growing")) as session:
        login = await ask(session, "login")
        assert [tool.name for tool in login.tools or ()] == ["login", "logout", "secret"]
        secret = await ask(session, "secret")
        assert (secret.text, secret.tools) == ("42", None)
        logout = await ask(session, "logout")
        assert [tool.name for tool in logout.tools or ()] == ["login", "logout"]
        assert (await ask(session, "secret")).status is TOOL


async def test_a_bad_tool_costs_only_itself() -> None:
    tool_set = await listed(odd("listing"))
    assert [tool.name for tool in tool_set.tools] == ["good", "bare", "add_item"]
    assert tool_set.instructions == "Log in before anything else."
    left_out = {each.name: each.why for each in tool_set.left_out}
    assert left_out == {
        "no-schema": "expected an object as inputSchema, found None",
        "list-schema": "expected an inputSchema of type object, found type 'array'",
        "number 4": "expected a name, found 7",
        "number 5": "expected an object, found 'no object'",
        "good": "tool 'good' is listed twice",
    }


async def test_schemas_lose_noise_and_keep_words() -> None:
    tools = {tool.name: tool for tool in (await listed(odd("listing"))).tools}
    assert tools["bare"].description == "Bare title"
    assert tools["bare"].parameters == {"type": "object"}
    assert tools["add_item"].parameters == {
        "type": "object",
        "properties": {
            "item_name": {"type": "string"},
            "size": {"title": "Size in cm", "type": "number", "default": None},
        },
    }


async def test_lists_without_an_end_end() -> None:
    with pytest.raises(ConfigError, match="found none that can be served"):
        await listed(odd("endless"))
    many = await listed(odd("many"))
    assert len(many.tools) == 1_000
    assert many.left_out[0].name == "further pages"


def test_the_configuration_says_how_long_a_server_may_take_to_start(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(
        '{"id": "a", "question": "q", "answer": "a", "split": "train", "tools": {"mcp": '
        '{"command": ["sleep", "60"]}}}'
    )
    hurried = ToolServerConfig(request_timeout_s=0.3)
    with pytest.raises(DeadlineError, match=r"within 0\.3 s \(tools\.request_timeout_s\)"):
        environment_of(RunConfig(env=FileEnvConfig(path=str(tmp_path)), tools=hurried))


# Over HTTP


@asynccontextmanager
async def serving(app: Callable) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    server.force_exit = True
    with contextlib.suppress(asyncio.CancelledError):
        await task


def adder() -> MCPServer:
    served = MCPServer("adder", instructions="It adds.")

    @served.tool()
    def add(a: int = 1, b: int = 2) -> int:
        return a + b

    return served


@pytest.mark.parametrize("transport", [None, "sse"])
async def test_the_older_transport_is_spoken(transport: str | None) -> None:
    async with serving(adder().sse_app()) as place:
        endpoint = McpHttpEndpoint.model_validate({"url": f"{place}/sse", "transport": transport})
        async with opened(endpoint) as session:
            assert (await ask(session, "add")).text == "3"
            assert session.isolation == "outside (mcp-http, shared)"
        assert (await listed(endpoint)).instructions == "It adds."


async def test_a_transport_is_found_whatever_the_url_says() -> None:
    async with (
        serving(adder().sse_app(sse_path="/events")) as place,
        opened(McpHttpEndpoint(url=f"{place}/events")) as session,
    ):
        assert (await ask(session, "add")).text == "3"
    async with (
        serving(adder().streamable_http_app(streamable_http_path="/my/sse")) as place,
        opened(McpHttpEndpoint(url=f"{place}/my/sse", state="session")) as session,
    ):
        assert (await ask(session, "add")).text == "3"
        assert session.isolation == "outside (mcp-http, session)"


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [(401, "text/plain", "HTTP 401"), (503, "text/plain", "HTTP 503"), (200, "text/html", "html")],
)
async def test_a_refusal_over_http_is_told_with_its_status(
    status: int, kind: str, said: str
) -> None:
    async def refuse(request: Request) -> Response:
        return Response("no", status, media_type=kind)

    app = Starlette(routes=[Route("/mcp", refuse, methods=["GET", "POST"])])
    async with serving(app) as place:
        with pytest.raises(ToolServerError, match=said):
            await listed(McpHttpEndpoint(url=f"{place}/mcp"))


@pytest.mark.parametrize("way", ["http", "sse"])
async def test_a_server_that_goes_away_is_the_worlds_business(way: str) -> None:
    served = adder()
    app, path = (
        (served.sse_app(), "/sse") if way == "sse" else (served.streamable_http_app(), "/mcp")
    )
    tools = McpTools(CONFIG, VARIABLES)
    async with serving(app) as place:
        endpoint = McpHttpEndpoint(url=f"{place}{path}")
        session = await tools.open_session(await listed(endpoint), 1, "execution")
        assert (await ask(session, "add")).status is OK
    assert (await ask(session, "add")).status is INFRA
    await session.close()
