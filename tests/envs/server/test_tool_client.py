"""The client: coalesced requests, typed failures, deadlines."""

import asyncio
import os
import pickle
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from websockets.asyncio.server import ServerConnection, serve

from envs.errors import ConfigError, DeadlineError, ServerFullError, ToolServerError
from envs.server.client import ToolClient
from envs.server.process import ToolServerProcess
from envs.server.wire import OpenedSession, pack_frame, pack_message, unpack_frame
from envs.tools import AnswerStatus, ToolCall
from tests.envs.server.tool_serving import CONFIG, SOURCE, TOKEN, TOOLS, Served, serving

OTHER_TOOLS = TOOLS.model_copy(update={"sources": (SOURCE + "#", SOURCE)})
ADD = ToolCall(name="add", arguments={})
SPIN = ToolCall(name="spin", arguments={})


@pytest.fixture
def server() -> Iterator[ToolServerProcess]:
    with ToolServerProcess(CONFIG) as process:
        yield process


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@pytest_asyncio.fixture
async def client(served: Served) -> AsyncIterator[ToolClient]:
    client = ToolClient(served.address, CONFIG, TOKEN)
    yield client
    await client.close()


async def test_one_turn_is_one_frame(served: Served, client: ToolClient) -> None:
    sets = [TOOLS, OTHER_TOOLS] * 8
    sessions = await asyncio.gather(*(client.open_session(tools, 1, "trial") for tools in sets))
    assert len({session.id for session in sessions}) == 16
    answers = await asyncio.gather(*(session.call([ADD, ADD]) for session in sessions))
    assert [[answer.text for answer in pair] for pair in answers] == [["1", "2"]] * 16
    await asyncio.gather(*(session.close() for session in sessions))
    assert served.frames[-2:] == [["call"] * 16, ["close"] * 16]
    assert sessions[0].isolation.startswith(("namespaces/", "landlock/", "seccomp/"))


async def test_slow_call_holds_up_no_other(client: ToolClient) -> None:
    slow, quick = [await client.open_session(TOOLS, 1, "trial") for _ in range(2)]
    spinning = asyncio.create_task(slow.call([SPIN]))
    assert (await quick.call([ADD]))[0].text == "1"
    assert not spinning.done()
    spinning.cancel()


async def test_odd_arguments_spoil_no_other_call(client: ToolClient) -> None:
    one, two = [await client.open_session(TOOLS, 1, "execution") for _ in range(2)]
    odd = ToolCall(name="add", arguments={"n": 10**30})
    unsayable = ToolCall(name="add", arguments={"n": "\ud800"})
    odd_answers, plain = await asyncio.gather(one.call([odd, unsayable]), two.call([ADD]))
    assert odd_answers[0].text == str(10**30)
    assert odd_answers[1].status is AnswerStatus.TOOL_ERROR
    assert plain[0].text == "1"
    assert await one.call([]) == []


async def test_closed_session_is_a_tool_server_error(client: ToolClient) -> None:
    one, two = [await client.open_session(TOOLS, 1, "trial") for _ in range(2)]
    await one.close()
    await one.close()
    alone, beside = await asyncio.gather(one.call([ADD]), two.call([ADD]), return_exceptions=True)
    assert isinstance(alone, ToolServerError)
    assert "unknown_session" in str(alone)
    assert not isinstance(beside, BaseException)
    with pytest.raises(ToolServerError, match="unknown_session"):
        await one.call([ADD])


async def test_cancelled_open_leaves_no_session(served: Served, client: ToolClient) -> None:
    task = asyncio.create_task(client.open_session(TOOLS, 1, "trial"))
    async with asyncio.timeout(5):
        while ["open"] not in served.frames:
            await asyncio.sleep(0)
        task.cancel()
        while ["close"] not in served.frames:
            await asyncio.sleep(0.01)
        while (await served.host.health()).sessions:
            await asyncio.sleep(0.01)


async def test_server_that_forgot_a_set_gets_it_again(served: Served, client: ToolClient) -> None:
    await client.open_session(TOOLS, 1, "trial")
    served.host.forget_old_tool_sets(keep=0)
    session = await client.open_session(TOOLS, 1, "trial")
    assert (await session.call([ADD]))[0].text == "1"
    assert served.frames == [["open"], ["open"], ["open"], ["call"]]


async def test_closing_the_client_ends_what_waits(served: Served) -> None:
    client = ToolClient(served.address, CONFIG, TOKEN)
    session = await client.open_session(TOOLS, 1, "trial")
    running = asyncio.create_task(session.call([SPIN]))
    await asyncio.wait([running], timeout=0.05)
    queued = asyncio.create_task(session.call([ADD]))
    await asyncio.sleep(0)
    await client.close()
    async with asyncio.timeout(2):
        errors = await asyncio.gather(running, queued, return_exceptions=True)
    assert all(isinstance(error, ToolServerError) for error in errors)


async def test_wrong_token_and_closed_client(served: Served) -> None:
    unknown = ToolClient(served.address, CONFIG, "guess")
    with pytest.raises(ToolServerError, match="unauthorized"):
        await unknown.open_session(TOOLS, 1, "trial")
    await unknown.close()
    with pytest.raises(ToolServerError, match="was closed"):
        await unknown.open_session(TOOLS, 1, "trial")


async def test_killed_server_is_a_typed_error_at_once(server: ToolServerProcess) -> None:
    client = ToolClient(server.address, CONFIG)
    session = await client.open_session(TOOLS, 1, "trial")
    calls = [asyncio.create_task(session.call([SPIN])) for _ in range(2)]
    assert server.pid
    await asyncio.wait(calls, timeout=0.2)
    os.kill(server.pid, signal.SIGKILL)
    async with asyncio.timeout(3):
        errors = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, ToolServerError) for error in errors)
    with pytest.raises(ToolServerError):
        await client.open_session(TOOLS, 1, "trial")
    await session.close()
    await client.close()


async def test_late_answer_is_a_deadline_error() -> None:
    hasty = CONFIG.model_copy(update={"request_timeout_s": 0.3, "call_timeout_s": 0.2})
    async with serving(CONFIG.model_copy(update={"call_timeout_s": 20})) as served:
        client = ToolClient(served.address, hasty, TOKEN)
        session = await client.open_session(TOOLS, 1, "trial")
        with pytest.raises(DeadlineError, match="did not answer within"):
            await session.call([SPIN])
        await client.close()


async def test_calls_that_hang_and_the_waits_after_them_are_no_deadline() -> None:
    """A policy must not be able to get its attempt back by calls that hang."""
    hasty = CONFIG.model_copy(update={"request_timeout_s": 0.5, "call_timeout_s": 0.2})
    async with serving(hasty) as served:
        client = ToolClient(served.address, hasty, TOKEN)
        session = await client.open_session(TOOLS, 1, "trial")
        began = asyncio.get_running_loop().time()
        answers = await session.call([SPIN] * 5)
        assert asyncio.get_running_loop().time() - began > 5 * 0.2 + 0.5
        assert {answer.status for answer in answers} == {AnswerStatus.TIMEOUT}
        await client.close()


@pytest.mark.parametrize("address", ["", "/tmp/socket", "ftp://host"])
def test_senseless_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected unix:/path or http://host:port"):
        ToolClient(address, CONFIG)


async def test_full_server_says_when_to_come_again() -> None:
    config = CONFIG.model_copy(update={"max_sessions": 1, "open_wait_s": 0.05, "max_calls": 1})
    async with serving(config) as served:
        client = ToolClient(served.address, config, TOKEN)
        session = await client.open_session(TOOLS, 1, "trial")
        with pytest.raises(ServerFullError, match="all 1 sessions were in use") as refused:
            await client.open_session(TOOLS, 1, "trial")
        assert refused.value.retry_after_s > 0
        assert pickle.loads(pickle.dumps(refused.value)).retry_after_s > 0
        with pytest.raises(ServerFullError, match="of 1 at most"):
            await session.call([ADD, ADD])
        assert (await session.call([ADD]))[0].text == "1"  # what was refused had not begun
        await client.close()


async def test_lost_connection_ends_its_sessions_and_is_made_again(
    served: Served, client: ToolClient
) -> None:
    session = await client.open_session(TOOLS, 1, "trial")
    other = ToolClient(served.address, CONFIG, TOKEN)
    await other.open_session(TOOLS, 1, "trial")
    await other.close()
    async with asyncio.timeout(5):
        while (await served.host.health()).sessions > 1:
            await asyncio.sleep(0.01)
    assert (await session.call([ADD]))[0].text == "1"


async def test_open_is_sent_again_and_a_call_is_not() -> None:
    """A server that hangs up at the first open, and at every call."""
    seen: list[str] = []

    async def answer(socket: ServerConnection) -> None:
        async for frame in socket:
            assert isinstance(frame, bytes)
            for number, kind, _ in unpack_frame(frame):
                seen.append(kind)
                if kind == "call" or seen == ["open"]:
                    await socket.close()
                    return
                opened = OpenedSession(id="s1", isolation="none/compute")
                await socket.send(pack_frame([pack_message(number, "opened", opened)]))

    async with serve(answer, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        client = ToolClient(f"http://127.0.0.1:{port}", CONFIG)
        session = await client.open_session(TOOLS, 1, "trial")
        with pytest.raises(ToolServerError):
            await session.call([ADD])
        assert seen == ["open", "open", "call"]
        await client.close()


async def test_server_that_is_gone_is_left_alone() -> None:
    config = CONFIG.model_copy(update={"breaker_failures": 3, "breaker_pause_s": 60})
    client = ToolClient("unix:/nowhere/socket", config)
    for words in ["not reachable"] * 2 + ["not called for 60 s"] * 2:  # two tries, then one
        with pytest.raises(ToolServerError, match=words):
            await client.open_session(TOOLS, 1, "trial")
    await client.close()


@pytest.mark.parametrize("frame", [b"\xc1", b"\x01", b"\x91\x01", b"", "text"])
async def test_nonsense_from_a_server_is_a_typed_error(frame: bytes | str) -> None:
    async def babble(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send(frame)
        await socket.wait_closed()

    async with serve(babble, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        client = ToolClient(f"http://127.0.0.1:{port}", CONFIG)
        with pytest.raises(ToolServerError, match="an invalid frame"):
            await client.open_session(TOOLS, 1, "trial")
        await client.close()
