"""Tools behind a real HTTP API, here a server in this process that counts what reaches it."""

import asyncio
import json
import time

import pytest

from envs.config import ToolServerConfig
from envs.endpoints import HttpEndpoint, HttpOperation, TokenCredential, WireArgument
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
from tests.envs.remote.counted_api import Asked, api, response

CONFIG = ToolServerConfig(call_timeout_s=1.0, reply_limit_bytes=1000)
OK, TOOL, INFRA = AnswerStatus.OK, AnswerStatus.TOOL_ERROR, AnswerStatus.INFRA_ERROR


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


BEARER = TokenCredential(variable="TOKEN")
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
        arguments={
            "id": WireArgument(place="path", name="id"),
            "tags": WireArgument(place="query", name="tags"),
            "deep": WireArgument(place="query", name="deep"),
            "X-Trace": WireArgument(place="header", name="X-Trace"),
            "sid": WireArgument(place="cookie", name="sid"),
            "id_in_body": WireArgument(place="field", name="id"),
        },
        credentials=("key",),
    )
    async with api(lambda _: response(201, '{"made": 1}')) as served:
        answer = await ask(
            tool_set(served.port, operation, credentials={"key": BEARER}),
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
    assert asked.target == "/v1/users/a%2F..%2Fb%3Fc/notes?tags=x&tags=y%20z&deep=true"
    assert json.loads(asked.body) == {"text": "hé", "id": 7}
    assert asked.headers["x-trace"] == "t1"
    assert asked.headers["cookie"] == "sid=s1"
    assert asked.headers["authorization"] == "Bearer secret"
    assert asked.headers["host"] == f"127.0.0.1:{served.port}"


@pytest.mark.parametrize("value", ["", ".", ".."])
async def test_a_path_argument_cannot_climb(value: str) -> None:
    x = WireArgument(place="path", name="x")
    operation = HttpOperation(method="get", path="/a/{x}/b", arguments={"x": x})
    async with api(lambda _: response(200)) as served:
        assert (await ask(tool_set(served.port, operation), {"x": value})).status is TOOL
    assert served.asked == []


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((status, OK) for status in (200, 201)),
        *((status, TOOL) for status in (400, 401, 403, 404, 422, 500)),
        *((status, INFRA) for status in (407, 429, 503)),
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


async def test_the_user_says_which_statuses_are_the_worlds() -> None:
    answers = iter([response(500, "down"), response(200, "up")])
    async with api(lambda _: next(answers)) as served:
        assert (await ask(tool_set(served.port, GET, infra_statuses=(500,)))).text == "up"
    async with api(lambda _: response(503, "no such region")) as served:
        answer = await ask(tool_set(served.port, GET, infra_statuses=()))
    assert (answer.status, answer.text) == (TOOL, "503 Word: no such region")
    assert len(served.asked) == 1


async def test_refused_credentials_are_not_the_policys_mistake() -> None:
    needy = GET.model_copy(update={"needs_credentials": True})
    signed = GET.model_copy(update={"credentials": ("key",)})
    async with api(lambda _: response(401, "who?")) as served:
        unsigned = await ask(tool_set(served.port, needy))
        wrong = await ask(
            tool_set(served.port, signed, credentials={"key": BEARER}), variables={"TOKEN": "old"}
        )
    assert unsigned.status is wrong.status is INFRA
    assert "the task names none" in unsigned.text
    assert "old" not in wrong.text
    assert len(served.asked) == 2


async def test_reads_are_tried_again_and_writes_are_not() -> None:
    answers = iter([response(503), None, response(200, "fine")])
    async with api(lambda _: next(answers)) as served:
        assert (await ask(tool_set(served.port, GET))).text == "fine"
    assert len(served.asked) == 3
    async with api(lambda _: None) as served:
        answer = await ask(tool_set(served.port, POST))
    assert answer.status is INFRA
    assert len(served.asked) == 1


async def test_an_api_that_asks_to_wait_is_left_alone_for_that_time() -> None:
    asked_at: list[float] = []

    def busy_once(_: Asked) -> bytes:
        asked_at.append(time.monotonic())
        return response(429, Retry_After="0.6") if len(asked_at) == 1 else response(200, "fine")

    async with api(busy_once) as served:
        assert (await ask(tool_set(served.port, GET))).text == "fine"
    assert asked_at[1] - asked_at[0] >= 0.6


@pytest.mark.parametrize("wait", ["86400", "inf", "Wed, 21 Oct 2099 07:28:00 GMT"])
async def test_a_wait_beyond_the_calls_time_is_no_time_out_of_the_policys(wait: str) -> None:
    async with api(lambda _: response(503, "down", Retry_After=wait)) as served:
        answer = await ask(tool_set(served.port, GET))
    assert (answer.status, len(served.asked)) == (INFRA, 1)
    assert answer.seconds < 0.9
    assert "503 Word: down" in answer.text


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


async def test_a_long_reply_is_cut() -> None:
    async with api(lambda _: response(200, "x" * 5_000)) as served:
        answer = await ask(tool_set(served.port, GET))
    assert answer.truncated
    assert answer.text == "x" * 1000


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
            post = POST.model_copy(update={"credentials": ("bearer", "key")})
            key = TokenCredential(variable="TOKEN", name="X-Key", prefix="")
            both = {"bearer": BEARER, "key": key}
            refused = tool_set(here.port, post, credentials=both)
            answer = await ask(refused, {"a": 1}, variables={"TOKEN": "k"})
            assert answer.status is TOOL
            assert there.asked == []
            hosts = (f"127.0.0.1:{here.port}", f"127.0.0.1:{there.port}")
            allowed = tool_set(here.port, post, credentials=both, allowed_hosts=hosts)
            answer = await ask(allowed, {"a": 1}, variables={"TOKEN": "k"})
    assert answer.text == "there"
    assert {"authorization", "x-key"} <= here.asked[-1].headers.keys()
    assert not {"authorization", "x-key"} & there.asked[0].headers.keys()
    assert (there.asked[0].method, json.loads(there.asked[0].body)) == ("POST", {"a": 1})
    async with api(lambda _: response(302, location="http://[half")) as nowhere:
        assert (await ask(tool_set(nowhere.port, GET))).status is TOOL
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


async def test_a_trial_calls_what_the_user_says_is_safe() -> None:
    search = POST.model_copy(update={"tried": True})
    answers = iter([None, response(200, "found")])
    async with api(lambda _: next(answers)) as served:
        answer = await ask(tool_set(served.port, search), {"q": "x"}, purpose="trial")
    assert answer.text == "found"
    assert [json.loads(asked.body) for asked in served.asked] == [{"q": "x"}] * 2


async def test_a_whole_number_goes_out_as_an_integer() -> None:
    x = WireArgument(place="path", name="x")
    operation = HttpOperation(method="post", path="/items/{x}", arguments={"x": x})
    whole: JsonObject = {"type": "integer"}
    spec = ToolSpec(
        name="tool0",
        description="",
        parameters={"type": "object", "properties": {"x": whole, "n": whole, "f": {}}},
    )
    async with api(lambda _: response(200, "1")) as served:
        tools = tool_set(served.port, operation).model_copy(update={"tools": (spec,)})
        await ask(tools, {"x": 3.0, "n": 2.0, "f": 1.0})
    assert served.asked[0].target == "/v1/items/3"
    assert served.asked[0].body == b'{"n":2,"f":1.0}'


async def test_defaults_of_required_arguments_are_sent() -> None:
    places = {
        "user": WireArgument(place="path", name="user"),
        "v": WireArgument(place="query", name="v"),
    }
    operation = HttpOperation(
        method="get", path="/u/{user}", arguments=places, defaults={"user": "me", "v": "2024"}
    )
    async with api(lambda _: response(200, "1")) as served:
        await ask(tool_set(served.port, operation))
        await ask(tool_set(served.port, operation), {"v": "2025"})
    assert [asked.target for asked in served.asked] == ["/v1/u/me?v=2024", "/v1/u/me?v=2025"]


async def test_an_operation_may_have_a_server_of_its_own() -> None:
    async with api(lambda _: response(200, "elsewhere")) as other, api(lambda _: None) as served:
        url = f"http://127.0.0.1:{other.port}/v2"
        operation = HttpOperation(method="get", path="/thing", base_url=url)
        hosts = (f"127.0.0.1:{other.port}",)
        answer = await ask(tool_set(served.port, operation, allowed_hosts=hosts))
    assert answer.text == "elsewhere"
    assert other.asked[0].target == "/v2/thing"


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
