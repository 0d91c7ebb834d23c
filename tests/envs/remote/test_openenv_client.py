"""Tools of OpenEnv environments: served by the real package, and by a socket that misbehaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve

from envs.config import ToolServerConfig
from envs.endpoints import OpenEnvEndpoint
from envs.errors import DeadlineError, ToolServerError
from envs.remote.endpoint_session import EndpointSession
from envs.remote.openenv_client import OpenEnvTools, tool_set_of_openenv
from envs.tools import AnswerStatus, JsonObject, ToolAnswer, ToolCall, ToolSet, ToolSpec

HERE = Path(__file__).resolve().parent
FOREIGN = HERE.parents[2] / ".venv-interop" / "bin" / "python"
CONFIG = ToolServerConfig(call_timeout_s=5.0, request_timeout_s=10.0)
OK, TOOL, INFRA = AnswerStatus.OK, AnswerStatus.TOOL_ERROR, AnswerStatus.INFRA_ERROR


@asynccontextmanager
async def opened(
    tool_set: ToolSet, config: ToolServerConfig = CONFIG, seed: int = 1
) -> AsyncIterator[EndpointSession]:
    session = await OpenEnvTools(config).open_session(tool_set, seed, "execution")
    try:
        yield session
    finally:
        await session.close()


async def ask(session: EndpointSession, name: str, /, **arguments: object) -> ToolAnswer:
    call = ToolCall.model_validate({"name": name, "arguments": arguments})
    return (await session.call([call]))[0]


# Environments that the real package serves


@asynccontextmanager
async def foreign() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        str(FOREIGN), str(HERE / "foreign_openenv.py"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


@pytest.mark.real
@pytest.mark.skipif(not FOREIGN.is_file(), reason="`make interop` has not installed openenv")
async def test_environments_of_the_real_package() -> None:
    async with foreign() as url:
        await play_steps(OpenEnvEndpoint(url=f"{url}/plain"))
        await play_tools(OpenEnvEndpoint(url=f"{url}/tools/"))


async def play_steps(endpoint: OpenEnvEndpoint) -> None:
    tool_set = await tool_set_of_openenv(endpoint, CONFIG)
    (step,) = tool_set.tools
    assert step.name == "step"
    assert "Guess the number" in step.description
    assert isinstance(step.parameters["properties"], dict)
    assert set(step.parameters["properties"]) == {"number", "wait_s"}
    assert step.parameters["required"] == ["number"]
    quick = ToolServerConfig(call_timeout_s=0.3)
    async with opened(tool_set, quick) as session:
        hints: list[str] = []
        for number in range(1, 10):
            answer = await ask(session, "step", number=number)
            outcome = json.loads(answer.text)
            hints.append(outcome["observation"]["hint"].partition(" ")[0])
            assert (outcome["reward"], outcome["done"]) == (float(hints[-1] == "right"),) * 2
        assert hints.count("right") == 1
        wrong = await ask(session, "step", number="many")
        assert (wrong.status, "number" in wrong.text) == (TOOL, True)
        broken = await ask(session, "step", number=0)
        assert (broken.status, "zero broke it" in broken.text) == (TOOL, True)
        slow = await ask(session, "step", number=1, wait_s=0.45)
        assert slow.status is AnswerStatus.TIMEOUT
        after = await ask(session, "step", number=2)
        assert after.text.count("#11") == 1  # its own answer, not the late one
        async with opened(tool_set) as again:
            same = [await ask(again, "step", number=number) for number in range(1, 10)]
            assert [json.loads(answer.text)["done"] for answer in same].index(True) == hints.index(
                "right"
            )
            with pytest.raises(ToolServerError, match="CAPACITY_REACHED"):
                await OpenEnvTools(CONFIG).open_session(tool_set, 1, "execution")


async def play_tools(endpoint: OpenEnvEndpoint) -> None:
    tool_set = await tool_set_of_openenv(endpoint, CONFIG)
    assert [tool.name for tool in tool_set.tools] == ["put", "look"]
    async with opened(tool_set) as one, opened(tool_set) as other:
        put = await ask(one, "put", thing="cup")
        assert json.loads(put.text) == {"result": ["cup"], "reward": 0.5, "done": False}
        wrong = await ask(one, "put")
        assert (wrong.status, wrong.text) == (TOOL, "thing: required")
        assert json.loads((await ask(one, "look")).text)["result"] == ["cup"]
        assert json.loads((await ask(other, "look")).text)["result"] == []


# A socket that misbehaves

Script = Callable[[JsonObject], "str | None"]
RESET = json.dumps({"type": "observation", "data": {"observation": {}}})


@asynccontextmanager
async def scripted(reply: Script) -> AsyncIterator[ToolSet]:
    """Serve `reply(message)`; None hangs up."""

    async def answer(socket: ServerConnection) -> None:
        async for text in socket:
            message = json.loads(text)
            said = RESET if message["type"] == "reset" else reply(message)
            if said is None:
                return
            await socket.send(said)

    async with serve(answer, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        endpoint = OpenEnvEndpoint(url=f"http://127.0.0.1:{port}")
        specs = [ToolSpec(name=name, description="", parameters={}) for name in ("look", "put")]
        yield ToolSet(tools=tuple(specs), endpoint=endpoint)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("no json", INFRA),
        ('{"type": "state", "data": {}}', INFRA),
        (None, INFRA),
        ("x" * 2_000_000, INFRA),
        ('{"type": "error", "data": {"code": "SESSION_ERROR", "message": "gone"}}', INFRA),
        ('{"type": "error", "data": {"code": "EXECUTION_ERROR", "message": "no"}}', TOOL),
        ('{"type": "observation", "data": {"observation": 3}}', OK),
        (
            '{"type": "observation", "data": {"observation": {"tool_name": "look", "result": null, '
            '"error": {"error_type": "transport_error", "message": "lost"}}}}',
            INFRA,
        ),
        (
            '{"type": "observation", "data": {"observation": {"tool_name": "look", "result": null, '
            '"error": {"error_type": "timeout", "message": "late"}}}}',
            AnswerStatus.TIMEOUT,
        ),
        (
            '{"type": "observation", "data": {"observation": {"tool_name": "look", '
            '"result": {"content": [{"type": "text", "text": "bad"}], "is_error": true}}}}',
            TOOL,
        ),
    ],
    ids=[
        *("nonsense", "other type", "hang-up", "flood", "lost session", "failed step", "bare"),
        *("transport", "timeout", "tool error"),
    ],
)
async def test_whose_business_a_failure_is(said: str | None, status: AnswerStatus) -> None:
    async with scripted(lambda _: said) as tool_set, opened(tool_set) as session:
        assert (await ask(session, "look")).status is status


async def test_what_a_server_said_before_it_hung_up_is_heard() -> None:
    hung_up = asyncio.Event()

    async def answer(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send(RESET)
        data = {"code": "SESSION_ERROR", "message": "evicted for a guest"}
        await socket.send(json.dumps({"type": "error", "data": data}))
        await socket.close()
        hung_up.set()

    async with serve(answer, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        spec = ToolSpec(name="look", description="", parameters={})
        endpoint = OpenEnvEndpoint(url=f"http://127.0.0.1:{port}")
        async with opened(ToolSet(tools=(spec,), endpoint=endpoint)) as session:
            await hung_up.wait()
            answered = await ask(session, "look")
    assert answered.status is INFRA
    assert "evicted for a guest" in answered.text


@asynccontextmanager
async def with_room_for_one() -> AsyncIterator[ToolSet]:
    """Serve one session at a time, and refuse others as OpenEnv does."""
    taken = asyncio.Lock()

    async def answer(socket: ServerConnection) -> None:
        if taken.locked():
            data = {"code": "CAPACITY_REACHED", "message": "1/1 sessions active"}
            await socket.send(json.dumps({"type": "error", "data": data}))
            return
        async with taken:
            async for text in socket:
                kind = json.loads(text)["type"]
                await socket.send(RESET if kind == "reset" else json.dumps({"type": kind}))

    async with serve(answer, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        spec = ToolSpec(name="look", description="", parameters={})
        endpoint = OpenEnvEndpoint(url=f"http://127.0.0.1:{port}")
        yield ToolSet(tools=(spec,), endpoint=endpoint)


async def test_sessions_wait_for_each_other_where_a_server_is_full() -> None:
    open_now, most = 0, 0

    async def one(tool_set: ToolSet) -> None:
        nonlocal open_now, most
        async with opened(tool_set):
            open_now += 1
            most = max(most, open_now)
            await asyncio.sleep(0)
            open_now -= 1

    async with with_room_for_one() as tool_set:
        await asyncio.gather(*(one(tool_set) for _ in range(4)))
        async with opened(tool_set):
            impatient = CONFIG.model_copy(update={"open_wait_s": 0.3})
            with pytest.raises(ToolServerError, match=r"1/1 sessions.*room for as many sessions"):
                async with opened(tool_set, impatient):
                    pytest.fail("it was full")
    assert most == 1


async def test_calls_and_results_are_wrapped_as_mcp_wraps_them() -> None:
    seen: list[JsonObject] = []

    def reply(message: JsonObject) -> str:
        seen.append(message)
        result = {"content": [{"type": "text", "text": "7"}], "data": 7, "is_error": False}
        observation = {"tool_name": "put", "result": result, "metadata": {}}
        data = {"observation": observation, "reward": 1.0, "done": True}
        return json.dumps({"type": "observation", "data": data})

    async with scripted(reply) as tool_set, opened(tool_set) as session:
        answer = await ask(session, "put", thing="cup")
    assert json.loads(answer.text) == {"result": 7, "reward": 1.0, "done": True}
    action = {"type": "call_tool", "tool_name": "put", "arguments": {"thing": "cup"}}
    assert seen[0] == {"type": "step", "data": action}


async def test_an_environment_that_is_not_there_is_the_worlds_business() -> None:
    endpoint = OpenEnvEndpoint(url="http://127.0.0.1:1")
    with pytest.raises(ToolServerError, match=r"127\.0\.0\.1:1"):
        await tool_set_of_openenv(endpoint, CONFIG)
    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with silent:
        port = silent.sockets[0].getsockname()[1]
        hurried = ToolServerConfig(request_timeout_s=0.2)
        with pytest.raises(DeadlineError, match=r"within 0\.2 s"):
            await tool_set_of_openenv(OpenEnvEndpoint(url=f"http://127.0.0.1:{port}"), hurried)
