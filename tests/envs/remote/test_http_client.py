"""Tools behind a real HTTP API, here a server in this process that counts what reaches it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from envs.config import ToolServerConfig
from envs.endpoints import HttpEndpoint, HttpOperation
from envs.errors import ConfigError
from envs.remote.http_client import HttpTools
from envs.tools import (
    AnswerStatus,
    JsonObject,
    SessionPurpose,
    ToolAnswer,
    ToolCall,
    ToolSet,
    ToolSpec,
)

CONFIG = ToolServerConfig(call_timeout_s=1.0, reply_limit_bytes=1000)
OK, TOOL, INFRA = AnswerStatus.OK, AnswerStatus.TOOL_ERROR, AnswerStatus.INFRA_ERROR


@dataclass
class Asked:
    """One request as the server saw it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Handler = Callable[[Asked], "bytes | None"]


@dataclass
class Api:
    """A server that answers what `handler` returns, and hangs up without an answer for None."""

    handler: Handler
    port: int = 0
    asked: list[Asked] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, target, _ = head[0].split(" ")
            pairs = (line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.asked.append(Asked(method, target, headers, body))
            answer = self.handler(self.asked[-1])
            if answer == b"hang":
                await reader.read()
            elif answer is not None:
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def response(status: int, body: str = "", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Word", f"content-length: {len(body)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


@asynccontextmanager
async def api(handler: Handler) -> AsyncIterator[Api]:
    served = Api(handler)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    async with server:
        yield served


def tool_set(port: int, *operations: HttpOperation, **changes: object) -> ToolSet:
    fields: dict = {
        "base_url": f"http://127.0.0.1:{port}/v1",
        "operations": operations,
        "allowed_hosts": (f"127.0.0.1:{port}",),
    }
    endpoint = HttpEndpoint(**{**fields, **changes})
    specs = [
        ToolSpec(name=f"tool{i}", description="", parameters={"type": "object"})
        for i in range(len(operations))
    ]
    return ToolSet(tools=tuple(specs), endpoint=endpoint)


GET = HttpOperation(method="get", path="/thing")
POST = HttpOperation(method="post", path="/thing")


async def ask(
    tools: ToolSet,
    arguments: JsonObject | None = None,
    *,
    purpose: SessionPurpose = "execution",
    variables: dict[str, str] | None = None,
) -> ToolAnswer:
    service = HttpTools(CONFIG, variables or {})
    session = await service.open_session(tools, 1, purpose)
    answers = await session.call([ToolCall(name="tool0", arguments=arguments or {})])
    await session.close()
    await service.close()
    return answers[0]


async def test_arguments_go_where_the_operation_says() -> None:
    operation = HttpOperation(
        method="post",
        path="/users/{id}/notes",
        locations={
            "id": "path",
            "tags": "query",
            "deep": "query",
            "X-Trace": "header",
            "sid": "cookie",
        },
        wire_names={"id_in_body": "id"},
    )
    async with api(lambda _: response(201, '{"made": 1}')) as served:
        answer = await ask(
            tool_set(served.port, operation, token_variable="TOKEN"),
            {
                "id": "a/../b?c",
                "tags": ["x", "y z"],
                "deep": True,
                "X-Trace": "t1",
                "sid": "s1",
                "text": "hé",
                "id_in_body": 7,
            },
            variables={"TOKEN": "secret"},
        )
    assert (answer.status, answer.text) == (OK, '{"made": 1}')
    asked = served.asked[0]
    assert asked.target == "/v1/users/a%2F..%2Fb%3Fc/notes?tags=x&tags=y+z&deep=true"
    assert json.loads(asked.body) == {"text": "hé", "id": 7}
    assert asked.headers["x-trace"] == "t1"
    assert asked.headers["cookie"] == "sid=s1"
    assert asked.headers["authorization"] == "Bearer secret"
    assert asked.headers["host"] == f"127.0.0.1:{served.port}"


@pytest.mark.parametrize("value", ["", ".", ".."])
async def test_a_path_argument_cannot_climb(value: str) -> None:
    operation = HttpOperation(method="get", path="/a/{x}/b", locations={"x": "path"})
    async with api(lambda _: response(200)) as served:
        assert (await ask(tool_set(served.port, operation), {"x": value})).status is TOOL
    assert served.asked == []


async def test_a_token_can_be_a_query_key_or_a_header() -> None:
    async with api(lambda _: response(200, "1")) as served:
        for location in ("query", "header"):
            tools = tool_set(
                served.port,
                GET,
                token_variable="T",
                token_location=location,
                token_name="api-key",
            )
            await ask(tools, variables={"T": "k"})
        with pytest.raises(ConfigError, match="environment variable T"):
            await ask(tools)
    assert served.asked[0].target == "/v1/thing?api-key=k"
    assert served.asked[1].headers["api-key"] == "k"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((status, OK) for status in (200, 201)),
        *((status, TOOL) for status in (400, 403, 404, 422, 500)),
        *((status, INFRA) for status in (401, 429, 503)),
    ],
)
async def test_a_status_is_the_policys_business_or_the_worlds(
    status: int, expected: AnswerStatus
) -> None:
    async with api(lambda _: response(status, "why")) as served:
        answer = await ask(tool_set(served.port, POST))
    assert answer.status is expected
    assert "why" in answer.text
    assert len(served.asked) == 1  # a POST that began is never sent again


async def test_reads_are_tried_again_and_writes_are_not() -> None:
    answers = iter([response(503), None, response(200, "fine")])
    async with api(lambda _: next(answers)) as served:
        assert (await ask(tool_set(served.port, GET))).text == "fine"
    assert len(served.asked) == 3
    async with api(lambda _: None) as served:
        answer = await ask(tool_set(served.port, POST))
    assert answer.status is INFRA
    assert len(served.asked) == 1


async def test_a_server_that_is_not_there_is_the_worlds_business() -> None:
    async with api(lambda _: None) as served:
        pass
    answer = await ask(tool_set(served.port, POST))
    assert answer.status is INFRA
    assert "ConnectError" in answer.text


async def test_a_call_has_a_deadline_and_the_session_goes_on() -> None:
    answers = iter([b"hang", response(200, "later")])
    async with api(lambda _: next(answers)) as served:
        service = HttpTools(ToolServerConfig(call_timeout_s=0.2), {})
        session = await service.open_session(tool_set(served.port, GET), 1, "execution")
        first, second = await session.call([ToolCall(name="tool0", arguments={})] * 2)
        await session.close()
    assert first.status is AnswerStatus.TIMEOUT
    assert first.seconds >= 0.2
    assert second.text == "later"


async def test_a_long_reply_is_cut_and_a_compressed_one_refused() -> None:
    async with api(lambda _: response(200, "x" * 5_000)) as served:
        answer = await ask(tool_set(served.port, GET))
    assert answer.truncated
    assert answer.text == "x" * 1000
    async with api(lambda _: response(200, "x", content_encoding="gzip")) as served:
        assert (await ask(tool_set(served.port, GET))).status is INFRA


async def test_only_listed_hosts_are_spoken_to() -> None:
    async with api(lambda _: response(200, "inside")) as served:
        other_port = tool_set(served.port, GET, allowed_hosts=("127.0.0.1:1",))
        answer = await ask(other_port)
        assert answer.status is TOOL
        assert "not among the allowed hosts" in answer.text
        by_name = tool_set(
            served.port,
            GET,
            base_url=f"http://localhost:{served.port}",
            allowed_hosts=(f"localhost:{served.port}",),
        )
        assert (await ask(by_name)).text == "inside"
    assert len(served.asked) == 1


async def test_a_name_that_leads_to_a_private_address_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with api(lambda _: response(200, "inside")) as served:

        async def found(host: str, port: int, **_: object) -> list:
            return [(2, 1, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
        host = f"api.example:{served.port}"
        surprise = tool_set(served.port, GET, base_url=f"http://{host}", allowed_hosts=(host,))
        answer = await ask(surprise)
        assert answer.status is TOOL
        assert "not a public address" in answer.text
        listed = tool_set(
            served.port, GET, base_url=f"http://{host}", allowed_hosts=(host, "127.0.0.1")
        )
        assert (await ask(listed)).text == "inside"
    assert [asked.headers["host"] for asked in served.asked] == [host]


async def test_redirects_are_checked_and_take_no_token_along() -> None:
    async with api(lambda _: response(200, "there")) as there:
        target = f"http://127.0.0.1:{there.port}/found"
        async with api(lambda _: response(307, location=target)) as here:
            refused = tool_set(here.port, POST, token_variable="T")
            answer = await ask(refused, {"a": 1}, variables={"T": "k"})
            assert answer.status is TOOL
            assert there.asked == []
            hosts = (f"127.0.0.1:{here.port}", f"127.0.0.1:{there.port}")
            allowed = tool_set(here.port, POST, token_variable="T", allowed_hosts=hosts)
            answer = await ask(allowed, {"a": 1}, variables={"T": "k"})
    assert answer.text == "there"
    assert "authorization" in here.asked[-1].headers
    assert "authorization" not in there.asked[0].headers
    assert (there.asked[0].method, json.loads(there.asked[0].body)) == ("POST", {"a": 1})
    async with api(lambda a: response(302, location=a.target + "x")) as loop:
        answer = await ask(tool_set(loop.port, GET))
    assert "redirects" in answer.text
    assert len(loop.asked) == 6


async def test_a_trial_only_reads() -> None:
    async with api(lambda _: response(200, "1")) as served:
        refused = await ask(tool_set(served.port, POST), purpose="trial")
        read = await ask(tool_set(served.port, GET), purpose="trial")
    assert refused.status is TOOL
    assert "trials may only read" in refused.text
    assert read.text == "1"
    assert [asked.method for asked in served.asked] == ["GET"]


async def test_cookies_stay_in_their_session() -> None:
    async with api(lambda _: response(200, "1", set_cookie="sid=a; Path=/")) as served:
        service = HttpTools(CONFIG, {})
        for _ in range(2):
            session = await service.open_session(tool_set(served.port, GET), 1, "execution")
            await session.call([ToolCall(name="tool0", arguments={})] * 2)
            await session.close()
    cookies = [asked.headers.get("cookie") for asked in served.asked]
    assert cookies == [None, "sid=a", None, "sid=a"]


@pytest.mark.parametrize("entry", ["", "user@host", "host/path", "host:port"])
async def test_an_allowed_host_that_is_none_is_named(entry: str) -> None:
    with pytest.raises(ConfigError, match="allowed_hosts"):
        await ask(tool_set(1, GET, allowed_hosts=(entry,)))
