"""The native protocol as foreign clients may (mis)use it, and what a server has room for."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgpack
import psutil
import pytest
import pytest_asyncio
from pydantic import JsonValue
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from envs.server.process import ToolServerProcess
from envs.server.tool_host import ToolHost
from envs.server.wire import CallItem, EncodedCall, OpenItem, pack_frame, unpack_frame
from tests.envs.server.tool_serving import CONFIG, TOKEN, TOOLS, Served, serving

ROOT = Path(__file__).resolve().parents[3]
ITEM = OpenItem(digest=TOOLS.digest, seed=1, purpose="trial")
OPEN: dict[str, JsonValue] = {
    "session": ITEM.model_dump(),
    "tool_set": TOOLS.model_dump(mode="json"),
}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def socket(served: Served) -> AsyncIterator[ClientConnection]:
    async with dial(served) as socket:
        yield socket


def dial(served: Served, **headers: str) -> connect:
    headers = {"authorization": f"Bearer {TOKEN}"} | headers
    uri = f"ws://127.0.0.1:{served.port}/stream"
    return connect(uri, additional_headers=headers, proxy=None, compression=None)


async def ask(socket: ClientConnection, *messages: JsonValue) -> dict[int, tuple[str, JsonValue]]:
    """Send `messages` as one frame; return kind and body of their answers by number."""
    await socket.send(msgpack.packb(list(messages)) or b"")
    answers: dict[int, tuple[str, JsonValue]] = {}
    async with asyncio.timeout(10):
        while len(answers) < len(messages):
            frame = await socket.recv(decode=False)
            answers |= {number: (kind, body) for number, kind, body in unpack_frame(frame)}
    return answers


async def open_one(socket: ClientConnection) -> str:
    kind, body = (await ask(socket, [0, "open", OPEN]))[0]
    assert kind == "opened" and isinstance(body, dict)
    return str(body["id"])


def calling(session: str, name: str = "add", arguments: str = "{}") -> dict[str, JsonValue]:
    return {"session": session, "calls": [{"name": name, "arguments": arguments}]}


async def test_one_connection_from_open_to_close(served: Served, socket: ClientConnection) -> None:
    session = await open_one(socket)
    answers = await ask(
        socket, [7, "call", calling(session)], [8, "call", calling(session, arguments='{"n": 4}')]
    )
    texts = [body[0]["text"] for _, body in (answers[7], answers[8])]  # pyright: ignore
    assert texts == ["1", "5"]
    assert (await ask(socket, [9, "close", {"ids": [session]}]))[9] == ("closed", {"closed": 1})
    kind, body = (await ask(socket, [10, "call", calling(session)]))[10]
    assert kind == "error" and isinstance(body, dict) and body["kind"] == "unknown_session"
    assert not served.host.knows(session)


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("dance", {}, "expected open, call or close"),
        ("call", {"session": "s", "calls": []}, "calls"),
        (
            "call",
            {"session": "s", "calls": [{"name": "add", "arguments": {}}]},
            "calls.0.arguments",
        ),
        ("call", [1, 2], "valid dictionary"),
        ("open", {"session": {"digest": "d", "seed": "s", "purpose": "trial"}}, "session.seed"),
        ("open", OPEN | {"surprise": 1}, "surprise"),
        ("open", OPEN | {"session": {**ITEM.model_dump(), "digest": "d"}}, "digest"),
        ("close", {"ids": "all"}, "ids"),
    ],
)
async def test_senseless_message_is_told_and_the_rest_goes_on(
    socket: ClientConnection, kind: str, body: JsonValue, words: str
) -> None:
    answers = await ask(socket, [1, kind, body], [2, "close", {"ids": []}])
    complaint = answers[1][1]
    assert isinstance(complaint, dict) and complaint["kind"] == "bad_request"
    assert words in str(complaint["message"])
    assert answers[2][0] == "closed"


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", b"\x01", b"\x91" * 2_000, b"\x91\x01", b"\x91\x93\x01\x01\x01", "text"],
)
async def test_frame_without_messages_ends_the_connection(
    served: Served, socket: ClientConnection, frame: bytes | str
) -> None:
    session = await open_one(socket)
    await socket.send(frame)
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionClosed) as ended:
            await socket.recv()
        assert ended.value.rcvd and ended.value.rcvd.code in (1_003, 1_007)
        while served.host.knows(session):
            await asyncio.sleep(0.01)


async def test_unknown_clients_and_browsers_stay_out(served: Served) -> None:
    for headers in ({"authorization": "Bearer guess"}, {"origin": "http://evil.example"}):
        with pytest.raises(InvalidStatus) as refused:
            await dial(served, **headers)
        assert refused.value.response.status_code in (401, 403)


async def test_open_waits_for_another_sessions_end() -> None:
    config = CONFIG.model_copy(update={"max_sessions": 1})
    async with serving(config) as served, dial(served) as socket:
        session = await open_one(socket)
        waiting = asyncio.create_task(ask(socket, [2, "open", OPEN]))
        async with asyncio.timeout(5):
            while not (await served.host.health()).opens_waiting:
                await asyncio.sleep(0)
        assert not waiting.done()
        assert served.host.close([session]) == 1
        assert (await waiting)[2][0] == "opened"


async def test_queues_are_bounded() -> None:
    limits = {"max_sessions": 1, "max_opens": 2, "open_wait_s": 5, "max_calls": 1}
    host = ToolHost(CONFIG.model_copy(update=limits))
    await host.start()
    host.add_tool_sets({TOOLS.digest: TOOLS})
    session = (await host.open_session(ITEM)).id
    waiting = [asyncio.create_task(host.open_session(ITEM)) for _ in range(2)]
    await asyncio.sleep(0)
    refused = (await host.open_session(ITEM)).error
    assert refused and (refused.kind, refused.retry_after_s) == ("full", 1)
    assert "2 sessions are being opened already" in refused.message
    spinning = asyncio.create_task(host.call(0, item(session, "spin")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    error = (await host.call(1, item(session, "add"))).error
    assert error and error.kind == "full"
    health = await host.health()
    assert (health.opens_waiting, health.opens_refused, health.calls_refused) == (2, 1, 1)
    host.close([session])
    answers = (await spinning).answers
    assert answers[0].status == "infra_error"
    done, _ = await asyncio.wait(waiting, return_when="FIRST_COMPLETED")
    assert all(task.result().id for task in done)
    for task in waiting:
        task.cancel()
    await host.stop()


def item(session: str, name: str) -> CallItem:
    return CallItem(session=session, calls=(EncodedCall(name=name, arguments="{}"),))


CLIENT = """
import asyncio
from envs.server.client import ToolClient
from envs.tools import ToolCall
from tests.envs.server.tool_serving import CONFIG, TOOLS

async def main():
    client = ToolClient({address!r}, CONFIG)
    sessions = [await client.open_session(TOOLS, 1, "trial") for _ in range(3)]
    spinning = asyncio.create_task(sessions[0].call([ToolCall(name="spin", arguments={{}})]))
    print("calling", flush=True)
    await spinning

asyncio.run(main())
"""


async def test_killed_client_leaves_no_child() -> None:
    with ToolServerProcess(CONFIG) as server:
        zygote = max(psutil.Process(server.pid).children(recursive=True), key=descendants)
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT.format(address=server.address)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert client.stdout is not None
        client.stdout.readline()
        children = set(zygote.children())
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        client.stdout.close()
        async with asyncio.timeout(30):  # the pool's idle children stay
            while sum(not child.is_running() for child in children) < 3:
                await asyncio.sleep(0.05)


def descendants(process: psutil.Process) -> int:
    """Count the children of a process; none of one that ended, such as a compiling child."""
    try:
        return len(process.children())
    except psutil.NoSuchProcess:
        return 0


async def test_frame_header_counts_its_messages() -> None:
    parts = [msgpack.packb([number, "close", {}]) or b"" for number in range(70_000)]
    assert len(unpack_frame(pack_frame(parts))) == 70_000
    assert unpack_frame(pack_frame([])) == []
