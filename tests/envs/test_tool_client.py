"""The client: coalesced requests, typed failures, deadlines."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio
import uvicorn

from envs.config import IsolationConfig, ToolServerConfig
from envs.errors import ConfigError, DeadlineError, ToolServerError
from envs.tool_client import ToolClient
from envs.tool_host import ToolHost
from envs.tool_process import ToolServerProcess
from envs.tool_server import bind_tcp, create_app, server_settings
from envs.tool_wire import unpack_frame
from envs.tools import AnswerStatus, ToolCall, ToolSet, ToolSpec

CONFIG = ToolServerConfig(
    isolation=IsolationConfig(required="seccomp"), call_timeout_s=5, request_timeout_s=10
)
TOKEN = "open sesame"
SOURCE = """
total = 0
def add(n=1):
    global total
    total += n
    return total
def spin():
    while True: pass
"""
TOOLS = ToolSet(
    tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in ("add", "spin")),
    sources=(SOURCE, SOURCE),
    functions=("add", "spin"),
)
OTHER_TOOLS = TOOLS.model_copy(update={"sources": (SOURCE + "#", SOURCE)})
ADD = ToolCall(name="add", arguments={})
SPIN = ToolCall(name="spin", arguments={})


@pytest.fixture
def server() -> Iterator[ToolServerProcess]:
    with ToolServerProcess(CONFIG) as process:
        yield process


class Served:
    """A server in this process that notes the kinds of requests by frame; the sandbox is real."""

    def __init__(self) -> None:
        self.frames: list[list[str]] = []
        self.host = ToolHost(CONFIG)
        self.app = create_app(self.host, TOKEN)
        self.listener = bind_tcp("127.0.0.1", 0, "")
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        async def noted() -> dict:
            event = await receive()
            if event["type"] == "websocket.receive":
                self.frames.append([kind for _, kind, _ in unpack_frame(event["bytes"])])
            return event

        await self.app(scope, noted, send)


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.host.start()
    server = uvicorn.Server(server_settings(served))
    task = asyncio.create_task(server._serve([served.listener]))  # serve() would take the signals
    yield served
    server.should_exit = True
    await task
    await served.host.stop()


@pytest_asyncio.fixture
async def client(served: Served) -> AsyncIterator[ToolClient]:
    client = ToolClient(served.address, CONFIG, TOKEN)
    yield client
    await client.close()


async def test_one_turn_is_one_frame(served: Served, client: ToolClient) -> None:
    sets = [TOOLS, OTHER_TOOLS] * 8
    sessions = await asyncio.gather(*(client.open(tools, 1, "trial") for tools in sets))
    assert len({session.id for session in sessions}) == 16
    answers = await asyncio.gather(*(session.call([ADD, ADD]) for session in sessions))
    assert [[answer.text for answer in pair] for pair in answers] == [["1", "2"]] * 16
    await asyncio.gather(*(session.close() for session in sessions))
    assert served.frames[-2:] == [["call"] * 16, ["close"] * 16]
    assert sessions[0].isolation.startswith(("namespaces/", "landlock/", "seccomp/"))


async def test_slow_call_holds_up_no_other(client: ToolClient) -> None:
    slow, quick = [await client.open(TOOLS, 1, "trial") for _ in range(2)]
    spinning = asyncio.create_task(slow.call([SPIN]))
    assert (await quick.call([ADD]))[0].text == "1"
    assert not spinning.done()
    spinning.cancel()


async def test_odd_arguments_spoil_no_other_call(client: ToolClient) -> None:
    one, two = [await client.open(TOOLS, 1, "execution") for _ in range(2)]
    odd = ToolCall(name="add", arguments={"n": 10**30})
    unsayable = ToolCall(name="add", arguments={"n": "\ud800"})
    odd_answers, plain = await asyncio.gather(one.call([odd, unsayable]), two.call([ADD]))
    assert odd_answers[0].text == str(10**30)
    assert odd_answers[1].status is AnswerStatus.TOOL_ERROR
    assert plain[0].text == "1"
    assert await one.call([]) == []


async def test_closed_session_is_a_tool_server_error(client: ToolClient) -> None:
    one, two = [await client.open(TOOLS, 1, "trial") for _ in range(2)]
    await one.close()
    await one.close()
    alone, beside = await asyncio.gather(one.call([ADD]), two.call([ADD]), return_exceptions=True)
    assert isinstance(alone, ToolServerError)
    assert "unknown_session" in str(alone)
    assert not isinstance(beside, BaseException)
    with pytest.raises(ToolServerError, match="unknown_session"):
        await one.call([ADD])


async def test_cancelled_open_leaves_no_session(served: Served, client: ToolClient) -> None:
    task = asyncio.create_task(client.open(TOOLS, 1, "trial"))
    async with asyncio.timeout(5):
        while ["open"] not in served.frames:
            await asyncio.sleep(0)
        task.cancel()
        while ["close"] not in served.frames:
            await asyncio.sleep(0.01)
        while (await served.host.health()).sessions:
            await asyncio.sleep(0.01)


async def test_server_that_forgot_a_set_gets_it_again(served: Served, client: ToolClient) -> None:
    await client.open(TOOLS, 1, "trial")
    served.host.forget_old_tool_sets(keep=0)
    session = await client.open(TOOLS, 1, "trial")
    assert (await session.call([ADD]))[0].text == "1"
    assert served.frames == [["open"], ["open"], ["open"], ["call"]]


async def test_closing_the_client_ends_what_waits(served: Served) -> None:
    client = ToolClient(served.address, CONFIG, TOKEN)
    session = await client.open(TOOLS, 1, "trial")
    running = asyncio.create_task(session.call([SPIN]))
    await asyncio.wait([running], timeout=0.05)
    queued = asyncio.create_task(session.call([ADD]))
    await asyncio.sleep(0)
    await client.close()
    async with asyncio.timeout(2):
        errors = await asyncio.gather(running, queued, return_exceptions=True)
    assert all(isinstance(error, ToolServerError) for error in errors)


async def test_wrong_token_and_closed_client(served: Served) -> None:
    stranger = ToolClient(served.address, CONFIG, "guess")
    with pytest.raises(ToolServerError, match="unauthorized"):
        await stranger.open(TOOLS, 1, "trial")
    await stranger.close()
    with pytest.raises(ToolServerError, match="was closed"):
        await stranger.open(TOOLS, 1, "trial")


async def test_killed_server_is_a_typed_error_at_once(server: ToolServerProcess) -> None:
    client = ToolClient(server.address, CONFIG)
    session = await client.open(TOOLS, 1, "trial")
    calls = [asyncio.create_task(session.call([SPIN])) for _ in range(2)]
    assert server.pid
    await asyncio.wait(calls, timeout=0.2)
    os.kill(server.pid, signal.SIGKILL)
    async with asyncio.timeout(3):
        errors = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, ToolServerError) for error in errors)
    with pytest.raises(ToolServerError):
        await client.open(TOOLS, 1, "trial")
    await session.close()
    await client.close()


async def test_late_answer_is_a_deadline_error(served: Served) -> None:
    hasty = CONFIG.model_copy(update={"request_timeout_s": 0.3, "call_timeout_s": 0.2})
    client = ToolClient(served.address, hasty, TOKEN)
    session = await client.open(TOOLS, 1, "trial")
    with pytest.raises(DeadlineError, match="did not answer within"):
        await session.call([SPIN])
    await client.close()


@pytest.mark.parametrize("address", ["", "/tmp/socket", "ftp://host"])
def test_senseless_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected unix:/path or http://host:port"):
        ToolClient(address, CONFIG)
