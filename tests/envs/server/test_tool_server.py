"""The tool server's routes, refusals and life cycle, over a real process."""

import asyncio
import os
import platform
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import msgpack
import psutil
import pytest
import pytest_asyncio
from fastapi import APIRouter

from envs.config import IsolationConfig, ToolServerConfig
from envs.endpoints import McpStdioEndpoint
from envs.errors import DeadlineError, IsolationError, ToolServerError
from envs.server.main import bind_tcp, create_app, main
from envs.server.process import ToolServerProcess
from envs.server.tool_host import ToolHost
from envs.server.wire import CallItem, EncodedCall, OpenItem
from envs.tools import ToolAnswer, ToolSet, ToolSpec

ROOT = Path(__file__).resolve().parents[3]
ADDER = ToolSet(
    tools=(ToolSpec(name="add", description="", parameters={}),),
    sources=("total = 0\ndef add(n):\n    global total\n    total += n\n    return total",),
    functions=("add",),
)
SPINNER = ToolSet(
    tools=(ToolSpec(name="spin", description="", parameters={}),),
    sources=("def spin():\n    while True: pass",),
    functions=("spin",),
)
CONFIG = ToolServerConfig(
    isolation=IsolationConfig(required="seccomp"),
    call_timeout_s=0.5,
    max_sessions=4,
    open_wait_s=0.05,
    session_idle_s=600,
)


@pytest_asyncio.fixture
async def host() -> AsyncIterator[ToolHost]:
    host = ToolHost(CONFIG)
    await host.start()
    yield host
    await host.stop()


@pytest_asyncio.fixture
async def http(host: ToolHost) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(host, token=""))
    async with httpx.AsyncClient(transport=transport, base_url="http://tools") as client:
        yield client


@pytest.fixture(scope="module")
def server() -> Iterator[ToolServerProcess]:
    with ToolServerProcess(CONFIG) as process:
        yield process


def opening(tool_set: ToolSet, count: int = 1, *, content: bool = True) -> dict:
    item = {"digest": tool_set.digest, "seed": 1, "purpose": "trial"}
    tool_sets = {tool_set.digest: tool_set.model_dump(mode="json")} if content else {}
    return {"sessions": [item] * count, "tool_sets": tool_sets}


def calling(session: str, *arguments: str, name: str = "add") -> dict:
    return {"session": session, "calls": [{"name": name, "arguments": text} for text in arguments]}


async def open_one(http: httpx.AsyncClient, tool_set: ToolSet = ADDER) -> str:
    response = await http.post("/sessions", json=opening(tool_set))
    assert response.status_code == 200, response.text
    return response.json()["sessions"][0]["id"]


async def test_session_from_open_to_close(http: httpx.AsyncClient) -> None:
    session = await open_one(http)
    body = {"items": [calling(session, '{"n": 2}', '{"n": 3}'), calling("nobody", "{}")]}
    results = (await http.post("/calls", json=body)).json()["results"]
    assert [answer["text"] for answer in results[0]["answers"]] == ["2", "5"]
    assert results[1]["error"]["kind"] == "unknown_session"
    health = (await http.get("/health")).json()
    assert (health["status"], health["sessions"], health["tool_sets"]) == ("healthy", 1, 1)
    assert health["isolation"].startswith(health["report"]["level"])
    assert health["report"]["limits"]["cpu_s"] == CONFIG.session_cpu_s
    assert (await http.delete(f"/sessions/{session}")).status_code == 204
    again = await http.delete(f"/sessions/{session}")
    assert (again.status_code, again.json()["error"]["kind"]) == (404, "unknown_session")
    body = {"items": [calling(session, "{}")]}
    assert (await http.post("/calls", json=body)).status_code == 404


async def test_set_that_was_sent_once_opens_by_digest(http: httpx.AsyncClient) -> None:
    unknown = await http.post("/sessions", json=opening(ADDER, content=False))
    assert (unknown.status_code, unknown.json()["error"]["kind"]) == (409, "unknown_tool_set")
    await open_one(http)
    known = await http.post("/sessions", json=opening(ADDER, content=False))
    assert known.json()["sessions"][0]["error"] is None


async def test_content_must_match_its_digest(http: httpx.AsyncClient) -> None:
    body = opening(ADDER) | {"tool_sets": {ADDER.digest: SPINNER.model_dump(mode="json")}}
    response = await http.post("/sessions", json=body)
    assert response.status_code == 400
    assert "expected a tool set with digest" in response.json()["error"]["message"]


async def test_full_server_refuses_only_what_does_not_fit(http: httpx.AsyncClient) -> None:
    response = await http.post("/sessions", json=opening(ADDER, 6))
    errors = [
        session["error"] and session["error"]["kind"] for session in response.json()["sessions"]
    ]
    assert errors == [None] * 4 + ["full"] * 2
    refused = await http.post("/sessions", json=opening(ADDER))
    assert (refused.status_code, refused.json()["error"]["kind"]) == (503, "full")
    ids = [session["id"] for session in response.json()["sessions"][:2]]
    closed = await http.post("/sessions/close", json={"ids": [*ids, ids[0], "nobody"]})
    assert closed.json() == {"closed": 2}
    await open_one(http)


async def test_slow_session_holds_up_no_other(http: httpx.AsyncClient) -> None:
    slow, quick = await open_one(http, SPINNER), await open_one(http)
    items = [calling(slow, "{}", name="spin"), calling(quick, '{"n": 1}')]
    response = await http.post(
        "/calls",
        content=msgpack.packb({"items": items}) or b"",
        headers={"content-type": "application/msgpack"},
    )
    unpacker = msgpack.Unpacker()
    unpacker.feed(response.content)
    results = list(unpacker)
    assert [result["index"] for result in results] == [1, 0]
    assert results[1]["answers"][0]["status"] == "timeout"


async def test_bad_bodies_are_told(http: httpx.AsyncClient) -> None:
    for body, content_type, words in (
        (b"{", "application/json", "JSON"),
        (b'{"items": []}', "application/json", "items"),
        (b'{"items": [{"session": 3}]}', "application/json", "items.0"),
        (b'{"surprise": 1}', "application/json", "items"),
        (b"\xc1", "application/msgpack", "msgpack"),
        (b"", "application/msgpack", "incomplete input"),
        (b"\x91" * 3_000, "application/msgpack", "msgpack"),
    ):
        response = await http.post("/calls", content=body, headers={"content-type": content_type})
        assert response.status_code == 400
        assert response.json()["error"]["kind"] == "bad_request"
        assert words in response.json()["error"]["message"]


async def test_token_is_checked(host: ToolHost) -> None:
    transport = httpx.ASGITransport(create_app(host, token="secret"))
    async with httpx.AsyncClient(transport=transport, base_url="http://tools") as client:
        assert (await client.get("/health")).status_code == 401
        wrong = await client.get("/health", headers={"authorization": "Bearer secre"})
        assert wrong.json()["error"]["kind"] == "unauthorized"
        right = await client.get("/health", headers={"authorization": "Bearer secret"})
        assert right.status_code == 200


class Notes:
    """A SessionObserver that keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, ...]] = []

    def opened(self, session_id: str, item: OpenItem, tool_set: ToolSet) -> None:
        self.seen.append(("opened", session_id, item.digest, tool_set.digest))

    def answered(self, session_id: str, call: EncodedCall, answer: ToolAnswer) -> None:
        self.seen.append(("answered", session_id, call.arguments, answer.text))

    def closed(self, session_id: str) -> None:
        self.seen.append(("closed", session_id))


async def test_observers_see_the_traffic() -> None:
    notes = Notes()
    host = ToolHost(CONFIG, observers=[notes])
    await host.start()
    host.add_tool_sets({ADDER.digest: ADDER})
    session = (await host.open_session(OpenItem(digest=ADDER.digest, seed=1, purpose="trial"))).id
    call = EncodedCall(name="add", arguments='{"n": 2}')
    await host.call(0, CallItem(session=session, calls=(call,)))
    await host.stop()
    assert notes.seen == [
        ("opened", session, ADDER.digest, ADDER.digest),
        ("answered", session, '{"n": 2}', "2"),
        ("closed", session),
    ]


async def test_only_python_code_is_served(http: httpx.AsyncClient) -> None:
    endpoint = McpStdioEndpoint(command=("true",))
    outside = ToolSet(tools=ADDER.tools, endpoint=endpoint)
    response = await http.post("/sessions", json=opening(outside))
    assert response.status_code == 400
    assert "expected Python sources" in response.json()["error"]["message"]


async def test_routers_stand_behind_the_token(host: ToolHost) -> None:
    router = APIRouter()

    @router.get("/door")
    async def door() -> str:
        return "open"

    transport = httpx.ASGITransport(create_app(host, "secret", [router]))
    async with httpx.AsyncClient(transport=transport, base_url="http://tools") as client:
        assert (await client.get("/door")).status_code == 401
        known = await client.get("/door", headers={"authorization": "Bearer secret"})
        assert known.json() == "open"


async def test_idle_sessions_are_closed() -> None:
    host = ToolHost(CONFIG.model_copy(update={"session_idle_s": 0.05}))
    await host.start()
    transport = httpx.ASGITransport(create_app(host, token=""))
    async with httpx.AsyncClient(transport=transport, base_url="http://tools") as client:
        session = await open_one(client)
        async with asyncio.timeout(5):
            while host.knows(session):
                await asyncio.sleep(0.01)
    await host.stop()


async def test_weaker_isolation_than_required_refuses_to_start() -> None:
    host = ToolHost(
        ToolServerConfig(isolation=IsolationConfig(required="namespaces")), strongest="seccomp"
    )
    with pytest.raises(IsolationError, match="this kernel gives seccomp"):
        await host.start()
    await host.stop()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "expected --token with --host 0.0.0.0"),
        (["--config-json", '{"call_timeout": 1}'], "call_timeout"),
        (["--uds", "/nowhere/socket"], "cannot listen on /nowhere/socket"),
    ],
)
def test_bad_command_lines_exit_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_path_of_a_living_server_is_left_alone(
    server: ToolServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--uds", server.address.removeprefix("unix:")]) == 2
    assert "another server listens" in capsys.readouterr().err
    assert server.alive


def test_machine_without_a_sandbox_exits_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert main(["--port", "0"]) == 1
    assert "IsolationError: expected Linux on x86_64 or aarch64" in capsys.readouterr().err


def test_taken_port_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with bind_tcp("127.0.0.1", 0, "") as listener:
        port = listener.getsockname()[1]
        assert main(["--port", str(port)]) == 2
    assert "Address already in use" in capsys.readouterr().err


def test_process_serves_on_a_private_socket(server: ToolServerProcess) -> None:
    path = Path(server.address.removeprefix("unix:"))
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://tools") as client:
        assert client.get("/health").json()["status"] == "healthy"
        opened = client.post("/sessions", json=opening(ADDER)).json()["sessions"][0]
        body = {"items": [calling(opened["id"], '{"n": 4}')]}
        assert client.post("/calls", json=body).json()["results"][0]["answers"][0]["text"] == "4"


def test_process_that_does_not_start_in_time_is_stopped() -> None:
    slow = ToolServerProcess(CONFIG, start_timeout_s=0.01)
    with pytest.raises(DeadlineError, match="was not ready within"):
        slow.start()
    assert not slow.alive
    with pytest.raises(ToolServerError, match="was not started"):
        slow.stderr()


def test_nothing_outlives_the_parent() -> None:
    script = (
        "from envs.server.process import ToolServerProcess as P; from envs.config import *\n"
        "p = P(ToolServerConfig(isolation=IsolationConfig(required='seccomp'))); p.start()\n"
        "print(p.pid, flush=True); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None and parent.stdin is not None
    server = psutil.Process(int(parent.stdout.readline()))
    family = [server, *server.children(recursive=True)]
    assert len(family) > 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    parent.stdin.close()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
