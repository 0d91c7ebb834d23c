"""Tools of MCP servers: one that misbehaves, the library's own over HTTP, some from elsewhere."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from mcp.server.mcpserver import MCPServer

from envs.config import ToolServerConfig
from envs.endpoints import McpHttpEndpoint, McpStdioEndpoint
from envs.errors import ConfigError, DeadlineError, ToolServerError
from envs.remote.endpoint_session import EndpointSession
from envs.remote.mcp_client import McpEndpoint, McpTools, tool_set_of_mcp
from envs.tools import AnswerStatus, JsonObject, ToolAnswer, ToolCall, ToolSet, ToolSpec

HERE = Path(__file__).resolve().parent
FOREIGN = HERE.parents[2] / ".venv-interop" / "bin"
CONFIG = ToolServerConfig(call_timeout_s=5.0, request_timeout_s=20.0, reply_limit_bytes=1_000)
VARIABLES = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "SECRET": "s3cret"}
RAW = McpStdioEndpoint(
    command=(sys.executable, "-I", str(HERE / "raw_mcp_server.py")), environment={"MINE": "1"}
)
OK, TOOL, INFRA = AnswerStatus.OK, AnswerStatus.TOOL_ERROR, AnswerStatus.INFRA_ERROR


def named(endpoint: McpEndpoint, *names: str) -> ToolSet:
    specs = [ToolSpec(name=name, description="", parameters={}) for name in names]
    return ToolSet(tools=tuple(specs), endpoint=endpoint)


@asynccontextmanager
async def opened(
    tool_set: ToolSet, config: ToolServerConfig = CONFIG
) -> AsyncIterator[EndpointSession]:
    session = await McpTools(config, VARIABLES).open_session(tool_set, 1, "execution")
    try:
        yield session
    finally:
        await session.close()


async def ask(session: EndpointSession, name: str, /, **arguments: object) -> ToolAnswer:
    call = ToolCall.model_validate({"name": name, "arguments": arguments})
    return (await session.call([call]))[0]


# A server that misbehaves


async def test_tools_are_listed_page_by_page() -> None:
    tool_set = await tool_set_of_mcp(RAW, CONFIG, VARIABLES)
    assert len(tool_set.tools) == 10
    assert tool_set.tools[0].description == "To echo."
    assert tool_set.endpoint == RAW


async def test_whose_business_a_failure_is() -> None:
    names = ("echo", "fail", "refuse", "stray", "flood", "die")
    async with opened(named(RAW, *names)) as session:
        echo = await ask(session, "echo", text="hé\nho")
        assert (echo.status, echo.text) == (OK, "hé\nho")
        assert (await ask(session, "fail")).status is TOOL
        assert (await ask(session, "refuse")).text == "refused"
        assert (await ask(session, "refuse")).status is TOOL
        assert (await ask(session, "stray")).text == "still here"
        long = await ask(session, "flood", bytes=2_000)
        assert (long.status, long.truncated, len(long.text)) == (OK, True, 1_000)
        assert (await ask(session, "refuse", as_defect=True)).status is TOOL
        assert (await ask(session, "die")).status is INFRA
        assert (await ask(session, "echo", text="x")).status is INFRA


async def test_a_flood_is_dropped_and_the_session_goes_on() -> None:
    async with opened(named(RAW, "flood", "echo")) as session:
        flood = await ask(session, "flood", bytes=20_000_000)
        assert flood.status is TOOL
        assert "longer than" in flood.text
        assert (await ask(session, "echo", text="on")).text == "on"


@pytest.mark.parametrize(
    "arguments", ['"\\ud800"', "NaN", "[" * 100 + "]" * 100], ids=["surrogate", "nan", "deep"]
)
async def test_no_argument_breaks_the_connection(arguments: str) -> None:
    async with opened(named(RAW, "echo")) as session:
        answer = await ask(session, "echo", text=json.loads(arguments))
        assert answer.status is TOOL
        assert "the arguments are" in answer.text
        assert (await ask(session, "echo", text="on")).text == "on"


async def test_a_call_has_a_deadline_and_its_late_answer_is_nobodys() -> None:
    config = ToolServerConfig(call_timeout_s=0.3)
    async with opened(named(RAW, "slow", "echo"), config) as session:
        slow = await ask(session, "slow", seconds=0.45)
        assert slow.status is AnswerStatus.TIMEOUT
        assert (await ask(session, "echo", text="next")).text == "next"


async def test_sessions_are_processes_of_their_own_and_leave_none_behind() -> None:
    async with opened(named(RAW, "spawn")) as one, opened(named(RAW, "spawn")) as other:
        pids = [int(pid) for pid in (await ask(one, "spawn")).text.split()]
        others = [int(pid) for pid in (await ask(other, "spawn")).text.split()]
    assert not set(pids) & set(others)
    for pid in pids + others:
        async with asyncio.timeout(2):
            while alive(pid):
                await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_server_sees_nothing_of_our_environment() -> None:
    async with opened(named(RAW, "environment")) as session:
        seen = json.loads((await ask(session, "environment")).text)
    assert seen == {**seen, "PATH": VARIABLES["PATH"], "HOME": "/nowhere", "MINE": "1"}
    assert "SECRET" not in seen
    assert set(seen) <= {"PATH", "HOME", "MINE", "LC_CTYPE"}


async def test_a_server_that_does_not_start_or_speak_is_the_worlds_business() -> None:
    absent = McpStdioEndpoint(command=("/nowhere/mcp-server",))
    with pytest.raises(ToolServerError, match="does not start"):
        await McpTools(CONFIG, VARIABLES).open_session(named(absent, "echo"), 1, "execution")
    quits = McpStdioEndpoint(command=(sys.executable, "-c", ""))
    with pytest.raises(ToolServerError, match="ended"):
        await McpTools(CONFIG, VARIABLES).open_session(named(quits, "echo"), 1, "execution")
    mute = McpStdioEndpoint(command=(*RAW.command, "--mute"))
    hurried = ToolServerConfig(request_timeout_s=0.3)
    with pytest.raises(DeadlineError, match=r"initialize the MCP session within 0\.3 s"):
        await McpTools(hurried, VARIABLES).open_session(named(mute, "echo"), 1, "execution")


# The library's own server, over HTTP


@pytest.fixture
async def url() -> AsyncIterator[str]:
    served = MCPServer("counter")
    counts: dict[str, int] = {}

    @served.tool()
    def count(name: str) -> int:
        """Count how often a name was given."""
        counts[name] = counts.get(name, 0) + 1
        return counts[name]

    @served.tool()
    def flood(size: int) -> str:
        return "x" * size

    @served.tool()
    async def sleep(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "awake"

    config = uvicorn.Config(served.streamable_http_app(), port=0, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/mcp"
    server.should_exit = True
    server.force_exit = True
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_the_librarys_own_server_over_http(url: str) -> None:
    tool_set = await tool_set_of_mcp(McpHttpEndpoint(url=url), CONFIG, {})
    assert [tool.name for tool in tool_set.tools] == ["count", "flood", "sleep"]
    assert tool_set.tools[0].parameters["required"] == ["name"]
    hasty = ToolServerConfig(call_timeout_s=0.5)
    async with opened(tool_set, hasty) as session:
        assert (await ask(session, "sleep", seconds=30)).status is AnswerStatus.TIMEOUT
    config = ToolServerConfig(call_timeout_s=30.0, reply_limit_bytes=1_000)
    async with opened(tool_set, config) as session:
        assert [(await ask(session, "count", name="a")).text for _ in range(2)] == ["1", "2"]
        wrong = await ask(session, "count")
        assert wrong.status is TOOL
        assert "name" in wrong.text
        assert (await ask(session, "flood", size=2_000)).truncated
        flood = await ask(session, "flood", size=5_000_000)
        assert (flood.status, "longer than" in flood.text) == (TOOL, True)
        assert (await ask(session, "count", name="a")).text == "3"


async def test_an_http_server_that_is_not_there_is_the_worlds_business() -> None:
    nowhere = McpHttpEndpoint(url="http://127.0.0.1:1/mcp")
    with pytest.raises(ToolServerError, match=r"MCP session with http://127\.0\.0\.1:1 ended"):
        await tool_set_of_mcp(nowhere, CONFIG, {})
    with pytest.raises(ConfigError, match="environment variable TOKEN"):
        await tool_set_of_mcp(
            McpHttpEndpoint(url="http://127.0.0.1:1/mcp", token_variable="TOKEN"), CONFIG, {}
        )


# Servers that nobody here wrote

SERVERS: dict[str, tuple[tuple[str, ...], list[tuple[str, JsonObject, AnswerStatus, str]]]] = {
    "mcp-server-time": (
        ("--local-timezone", "UTC"),
        [
            (
                "convert_time",
                {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"},
                OK,
                "T21:00:00+09:00",
            ),
            ("convert_time", {"source_timezone": "UTC"}, TOOL, "'time' is a required property"),
        ],
    ),
    "mcp-server-sqlite": (
        ("--db-path", "{folder}/db.sqlite"),
        [
            ("create_table", {"query": "create table t (a int)"}, OK, "created"),
            ("write_query", {"query": "insert into t values (42)"}, OK, "1"),
            ("read_query", {"query": "select a from t"}, OK, "42"),
        ],
    ),
    "mcp-server-calculator": (
        (),
        [
            ("calculate", {"expression": "2 * 21"}, OK, "42"),
            ("calculate", {}, TOOL, "expression"),
        ],
    ),
    "mcp-server-git": (
        ("--repository", "{folder}"),
        [
            ("git_status", {"repo_path": "{folder}"}, OK, "No commits yet"),
            ("git_log", {"repo_path": "/nowhere"}, TOOL, "outside"),
        ],
    ),
}


@pytest.mark.real
@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.skipif(not FOREIGN.is_dir(), reason="`make interop` has not installed foreign servers")
async def test_a_server_from_elsewhere(name: str, tmp_path: Path) -> None:
    if name == "mcp-server-git":
        git = await asyncio.create_subprocess_exec("git", "init", "-q", str(tmp_path))
        await git.wait()
    options, calls = SERVERS[name]
    command = (str(FOREIGN / name), *(text.format(folder=tmp_path) for text in options))
    async with asyncio.timeout(60):
        tool_set = await tool_set_of_mcp(McpStdioEndpoint(command=command), CONFIG, VARIABLES)
        async with opened(tool_set) as session:
            for tool, arguments, status, part in calls:
                text = json.dumps(arguments).replace("{folder}", str(tmp_path))
                answer = await ask(session, tool, **json.loads(text))
                assert (answer.status, part in answer.text) == (status, True), answer
