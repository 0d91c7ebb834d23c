"""Credentials on the wire: keys, passwords, and tokens that an OAuth 2 server gives."""

import base64
import json
import logging
from urllib.parse import parse_qs

import pytest

from envs.config import ToolServerConfig
from envs.endpoints import (
    BasicCredential,
    ClientCredential,
    Credential,
    HttpEndpoint,
    HttpOperation,
    TokenCredential,
)
from envs.errors import ConfigError
from envs.remote.http_client import HttpTools
from envs.tools import AnswerStatus, ToolAnswer, ToolCall, ToolSet, ToolSpec
from tests.envs.remote.counted_api import Asked, api, response

VARIABLES = {"T": "tok", "UP": "ann:s3", "U": "ann", "P": "s3", "ID": "my id", "SECRET": "s&t"}
CONFIG = ToolServerConfig(call_timeout_s=2.0)


def tools(port: int, **credentials: Credential) -> ToolSet:
    operation = HttpOperation(
        method="post", path="/x", credentials=tuple(credentials), needs_credentials=True
    )
    endpoint = HttpEndpoint(
        base_url=f"http://127.0.0.1:{port}",
        operations=(operation,),
        allowed_hosts=(f"127.0.0.1:{port}",),
        credentials=credentials,
    )
    spec = ToolSpec(name="x", description="", parameters={"type": "object"})
    return ToolSet(tools=(spec,), endpoint=endpoint)


async def ask(service: HttpTools, tool_set: ToolSet) -> ToolAnswer:
    session = await service.open_session(tool_set, 1, "execution")
    answers = await session.call([ToolCall(name="x", arguments={})])
    await session.close()
    return answers[0]


@pytest.mark.parametrize(
    ("credential", "header", "value"),
    [
        (TokenCredential(variable="T"), "authorization", "Bearer tok"),
        (TokenCredential(variable="T", prefix="Bot "), "authorization", "Bot tok"),
        (TokenCredential(variable="T", name="X-API-Key", prefix=""), "x-api-key", "tok"),
        (TokenCredential(variable="T", place="cookie", name="sid"), "cookie", "sid=tok"),
        (BasicCredential(variable="UP"), "authorization", "Basic YW5uOnMz"),
        (
            BasicCredential(user_variable="U", password_variable="P"),
            "authorization",
            "Basic YW5uOnMz",
        ),
    ],
)
async def test_a_credential_is_sent_as_its_scheme_says(
    credential: Credential, header: str, value: str
) -> None:
    async with api(lambda _: response(200, "1")) as served:
        await ask(HttpTools(CONFIG, VARIABLES), tools(served.port, one=credential))
    assert served.asked[0].headers[header] == value


async def test_credentials_that_are_needed_together_are_sent_together() -> None:
    key = TokenCredential(variable="T", place="query", name="api key")
    both = {"login": BasicCredential(variable="UP"), "key": key}
    async with api(lambda _: response(200, "1")) as served:
        await ask(HttpTools(CONFIG, VARIABLES), tools(served.port, **both))
    assert served.asked[0].headers["authorization"].startswith("Basic ")
    assert served.asked[0].target == "/x?api+key=tok"


async def test_no_log_has_a_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = TokenCredential(variable="T", place="query", name="key", prefix="")
    async with api(lambda _: response(500, "no")) as served:
        answer = await ask(HttpTools(CONFIG, {"T": "s3cr3t"}), tools(served.port, one=key))
    assert served.asked[0].target == "/x?key=s3cr3t"
    assert "s3cr3t" not in caplog.text + answer.text


async def test_only_credentials_that_are_sent_are_read() -> None:
    async with api(lambda _: response(200, "1")) as served:
        tool_set = tools(served.port, one=TokenCredential(variable="T"))
        endpoint = tool_set.endpoint
        assert isinstance(endpoint, HttpEndpoint)
        more = {**endpoint.credentials, "other": TokenCredential(variable="NOT_SET")}
        changed = endpoint.model_copy(update={"credentials": more})
        answer = await ask(
            HttpTools(CONFIG, VARIABLES), tool_set.model_copy(update={"endpoint": changed})
        )
    assert answer.text == "1"


async def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(ConfigError, match="environment variable T, found none"):
        await ask(HttpTools(CONFIG, {}), tools(1, one=TokenCredential(variable="T")))


class TokenServer:
    """Answers `/token` with a new token each time, and `/x` if the token is not refused."""

    def __init__(self, **reply: object) -> None:
        self.reply: dict[str, object] = {**reply}
        self.given = 0
        self.refused: set[str] = set()

    def __call__(self, asked: Asked) -> bytes:
        if asked.target == "/token":
            self.given += 1
            token = {"access_token": f"t{self.given}", "token_type": "bearer", **self.reply}
            return response(200, json.dumps(token))
        refused = asked.headers["authorization"] in self.refused
        return response(401 if refused else 200, "no" if refused else "done")


def client(port: int, **changes: object) -> ClientCredential:
    fields = {
        "id_variable": "ID",
        "secret_variable": "SECRET",
        "token_url": f"http://127.0.0.1:{port}/token",
        "scopes": ("read", "write"),
    }
    return ClientCredential.model_validate({**fields, **changes})


async def test_a_clients_token_is_fetched_once_for_all_sessions() -> None:
    server = TokenServer(expires_in=3600)
    async with api(server) as served:
        service = HttpTools(CONFIG, VARIABLES)
        tool_set = tools(served.port, oauth=client(served.port))
        assert [(await ask(service, tool_set)).text for _ in range(3)] == ["done"] * 3
    fetch, *calls = served.asked
    assert (fetch.method, fetch.target, server.given) == ("POST", "/token", 1)
    assert parse_qs(fetch.body.decode()) == {
        "grant_type": ["client_credentials"],
        "scope": ["read write"],
    }
    given = base64.b64decode(fetch.headers["authorization"].removeprefix("Basic ")).decode()
    assert given == "my+id:s%26t"
    assert {call.headers["authorization"] for call in calls} == {"Bearer t1"}


async def test_a_client_may_send_its_secret_in_the_form() -> None:
    async with api(TokenServer()) as served:
        oauth = client(served.port, in_body=True, scopes=())
        await ask(HttpTools(CONFIG, VARIABLES), tools(served.port, oauth=oauth))
    assert parse_qs(served.asked[0].body.decode()) == {
        "grant_type": ["client_credentials"],
        "client_id": ["my id"],
        "client_secret": ["s&t"],
    }
    assert "authorization" not in served.asked[0].headers


async def test_a_token_is_fetched_again_when_it_expires_or_is_refused() -> None:
    server = TokenServer(expires_in=0)
    async with api(server) as served:
        service = HttpTools(CONFIG, VARIABLES)
        tool_set = tools(served.port, oauth=client(served.port))
        for _ in range(2):
            await ask(service, tool_set)
        assert server.given == 2
        server.reply = {"expires_in": "3600"}
        await ask(service, tool_set)
        server.refused = {"Bearer t3"}
        assert (await ask(service, tool_set)).text == "done"
        assert server.given == 4
        server.refused = {f"Bearer t{number}" for number in range(9)}
        answer = await ask(service, tool_set)
    assert (answer.status, answer.text) == (AnswerStatus.INFRA_ERROR, "401 Word: no")
    assert server.given == 5


@pytest.mark.parametrize(
    "reply",
    [response(400, "s&t is wrong"), response(200, "no json"), response(200, "{}"), None],
)
async def test_a_token_server_that_gives_none_is_the_worlds_business(reply: bytes | None) -> None:
    async with api(lambda _: reply) as served:
        tool_set = tools(served.port, oauth=client(served.port))
        answer = await ask(HttpTools(CONFIG, VARIABLES), tool_set)
    assert answer.status is AnswerStatus.INFRA_ERROR
    assert "the token server 127.0.0.1" in answer.text
    assert "s&t" not in answer.text
