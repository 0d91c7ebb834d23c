"""What HTTP does to a request for a teacher's turn: tries, waits, deadlines, budgets, refusals."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from starlette.responses import JSONResponse

from envs.errors import ConfigError, EngineError, MissingError, TeacherError
from rollout.engines.openai_client import ChatClient, Spending
from rollout.engines.openai_wire import read_reply
from tests.rollout.engines.fake_endpoint import (
    KEY,
    PROMPT,
    Answer,
    FakeEndpoint,
    fails,
    garbage,
    hangs,
    no_choices,
    says,
)


@pytest.mark.parametrize(
    "trouble",
    [
        fails(429),
        fails(500),
        fails(503, retry_after="0"),
        fails(503, retry_after=format_datetime(datetime.now(UTC) - timedelta(hours=1))),
        fails(502, retry_after="soon"),
        garbage,
        no_choices,
    ],
)
async def test_trouble_is_tried_again(trouble: Answer) -> None:
    endpoint = FakeEndpoint([trouble, trouble, says("yes")])
    client = endpoint.client(PROMPT)
    took = Spending()
    answer = await client.complete({"model": "m"}, "r", took)
    assert read_reply(answer, "drop").text == "yes"
    assert (took.requests, took.tokens) == (3, 15)
    assert client.spent == took


async def test_a_hang_ends_at_the_deadline_of_the_try() -> None:
    config = PROMPT.model_copy(update={"attempt_timeout_s": 0.05})
    endpoint = FakeEndpoint([hangs, says("yes")])
    took = Spending()
    answer = await endpoint.client(config).complete({}, "r", took)
    assert (read_reply(answer, "drop").text, took.requests) == ("yes", 2)


async def test_a_lost_connection_is_tried_again_and_then_named() -> None:
    def lose(request: httpx.Request) -> httpx.Response:
        raise httpx.RemoteProtocolError("Server disconnected")

    http = httpx.AsyncClient(transport=httpx.MockTransport(lose))
    with pytest.raises(TeacherError, match=r"after 4 attempts.*Server disconnected"):
        await ChatClient(http, PROMPT, "").complete({}, "r", Spending())


async def test_retry_after_holds_all_requests_back_and_ends_at_the_deadline() -> None:
    config = PROMPT.model_copy(update={"deadline_s": 5.0})
    endpoint = FakeEndpoint([fails(429, "slow down", retry_after="60"), says("yes")])
    client = endpoint.client(config)
    for _ in range(2):
        with pytest.raises(TeacherError, match=r"after \d attempts"):
            await client.complete({}, "r", Spending())
    assert len(endpoint.requests) == 1, "the second request waited for the first one's Retry-After"


async def test_the_wait_that_was_asked_for_is_kept() -> None:
    endpoint = FakeEndpoint([fails(429, retry_after="0.2"), says("yes")])
    began = asyncio.get_running_loop().time()
    await endpoint.client(PROMPT).complete({}, "r", Spending())
    assert asyncio.get_running_loop().time() - began >= 0.2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (fails(401), r"rejects the key in \$TEACHER_KEY \(HTTP 401\)"),
        (fails(404, "no such model"), "rejects every request: HTTP 404: no such model"),
        (fails(429, '{"code": "insufficient_quota"}'), "rejects every request"),
    ],
)
async def test_what_no_request_survives_stops_the_collection(answer: Answer, message: str) -> None:
    config = PROMPT.model_copy(update={"key_variable": "TEACHER_KEY"})
    endpoint = FakeEndpoint([answer])
    with pytest.raises(EngineError, match=message):
        await endpoint.client(config).complete({}, "r", Spending())
    assert len(endpoint.requests) == 1


async def test_a_reply_that_does_not_say_what_it_used_still_costs() -> None:
    body = {"choices": [{"message": {"content": "x" * 300}}]}
    client = FakeEndpoint([lambda endpoint, request: JSONResponse(body)]).client(PROMPT)
    await client.complete({"messages": ["y" * 300]}, "r", Spending())
    assert client.spent.prompt_tokens >= 100
    assert client.spent.completion_tokens >= 100


async def test_the_check_lists_what_the_endpoint_offers() -> None:
    with pytest.raises(ConfigError, match="no model 'm'; it serves: big, small"):
        await FakeEndpoint([]).client(PROMPT).check()
    await FakeEndpoint([]).client(PROMPT.model_copy(update={"model": "big"})).check()


async def test_the_check_names_an_endpoint_that_is_not_there_and_a_refused_key() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    http = httpx.AsyncClient(transport=httpx.MockTransport(refuse))
    with pytest.raises(MissingError, match="expected an endpoint at http://teacher/v1"):
        await ChatClient(http, PROMPT, KEY).check()
    unauthorised = httpx.MockTransport(lambda request: httpx.Response(401))
    http = httpx.AsyncClient(transport=unauthorised)
    with pytest.raises(ConfigError, match="a request without a key"):
        await ChatClient(http, PROMPT, "").check()


async def test_an_endpoint_without_a_list_of_models_passes_the_check() -> None:
    for response in (httpx.Response(404), httpx.Response(200, text="hello")):
        transport = httpx.MockTransport(lambda request, response=response: response)
        await ChatClient(httpx.AsyncClient(transport=transport), PROMPT, "").check()
