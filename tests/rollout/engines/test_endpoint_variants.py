"""Endpoints differ: in waits, statuses, `usage`, finish reasons, and names of models."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, PlainTextResponse, Response

from envs.errors import ConfigError, EngineError, TeacherError
from envs.remote.http_reply import retry_after_s
from envs.remote.tokens import check_header, endpoint_token
from rollout.engines.openai_client import MAX_RETRY_AFTER_S, ChatClient, Spending
from rollout.engines.openai_wire import ChatReply, may_be_listed_as, read_reply
from tests.rollout.engines.fake_endpoint import KEY, PROMPT, Answer, FakeEndpoint, fails, says

TEMPORARY = [500, 502, 503, 504, 507, 509, *range(520, 531), 598, 599]
PERMANENT = [501, 505, 506, 508, 510, 511]


@pytest.mark.parametrize("status", TEMPORARY)
async def test_a_temporary_server_error_is_tried_again(status: int) -> None:
    endpoint = FakeEndpoint([fails(status), says("yes")])
    answer = await endpoint.client(PROMPT).complete({}, "r", Spending())
    assert read_reply(answer, "drop").text == "yes"


@pytest.mark.parametrize("status", PERMANENT)
async def test_a_permanent_server_error_is_not(status: int) -> None:
    endpoint = FakeEndpoint([fails(status)])
    with pytest.raises(TeacherError, match=f"HTTP {status}"):
        await endpoint.client(PROMPT).complete({}, "r", Spending())
    assert len(endpoint.requests) == 1


# Waits


@given(
    st.integers(0, 8),
    st.floats(-5, 200),
    st.text("abc", min_size=1),
    st.floats(0.001, 10),
)
def test_a_wait_is_what_was_asked_for_or_the_backoff_if_longer(
    attempt: int, quiet_s: float, label: str, backoff_s: float
) -> None:
    config = PROMPT.model_copy(update={"backoff_s": backoff_s})
    client = FakeEndpoint([]).client(config)
    wait_s = client._wait_s(label, attempt, quiet_s)
    shortest = backoff_s * 2 ** (attempt - 1) / 2 if attempt else 0.0
    assert wait_s >= max(quiet_s, shortest)
    assert wait_s <= max(quiet_s, 0.0) + 2 * backoff_s * 2**attempt
    assert wait_s == client._wait_s(label, attempt, quiet_s)


@pytest.mark.parametrize("quiet_s", [0.0, 1.0])
def test_requests_that_wait_do_not_come_back_together(quiet_s: float) -> None:
    """64 requests whose endpoint takes 8 a second: no second has many more than that."""
    client = FakeEndpoint([]).client(PROMPT.model_copy(update={"backoff_s": 8.0}))
    waits = [client._wait_s(f"request-{i}", 1, quiet_s) for i in range(64)]
    assert len(set(waits)) == 64
    seconds = [int(wait_s) for wait_s in waits]
    assert max(seconds.count(second) for second in set(seconds)) <= 20


PAST = "Sun, 01 Mar 2020 00:00:00 GMT"
FUTURE = "Fri, 01 Mar 2199 00:00:00 GMT"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ("soon", None),
        ("nan", None),
        ("0", 0.0),
        ("-3", 0.0),
        ("1.5", 1.5),
        ("7", 7.0),
        ("inf", MAX_RETRY_AFTER_S),
        ("86400", MAX_RETRY_AFTER_S),
        ("99999-01-01", None),
        (PAST, 0.0),
        (FUTURE, MAX_RETRY_AFTER_S),
    ],
)
def test_retry_after_is_seconds_or_a_date_within_bounds(
    header: str, expected: float | None
) -> None:
    response = httpx.Response(429, headers={"retry-after": header} if header else {})
    assert retry_after_s(response, MAX_RETRY_AFTER_S) == expected


async def test_retry_after_zero_does_not_replace_the_backoff() -> None:
    """The endpoint refuses for 60 ms; attempts without a back-off would be used up by then."""
    began = time.monotonic()

    def busy(endpoint: FakeEndpoint, request: dict[str, Any]) -> Response:
        answer = fails(429, retry_after="0") if time.monotonic() < began + 0.06 else says("yes")
        return answer(endpoint, request)

    config = PROMPT.model_copy(update={"backoff_s": 0.02, "attempts": 6})
    answer = await FakeEndpoint([busy]).client(config).complete({}, "r", Spending())
    assert read_reply(answer, "drop").text == "yes"


# Usage


def replies(usage: object, content: str = "x" * 30, finish: object = "stop") -> Answer:
    body: dict[str, Any] = {
        "choices": [{"message": {"content": content}, "finish_reason": finish}],
        "usage": usage,
    }
    if usage == "absent":
        del body["usage"]
    return lambda endpoint, request: JSONResponse(body)


@pytest.mark.parametrize(
    ("usage", "prompt", "completion"),
    [
        ("absent", 40, 30),
        (None, 40, 30),
        ("many", 40, 30),
        ([1, 2], 40, 30),
        ({}, 40, 30),
        ({"prompt_tokens": None, "completion_tokens": None}, 40, 30),
        ({"prompt_tokens": 7, "completion_tokens": None}, 7, 30),
        ({"prompt_tokens": 7.0, "completion_tokens": 3.5}, 7, 4),
        ({"prompt_tokens": "7", "completion_tokens": "3"}, 7, 3),
        ({"prompt_tokens": -7, "completion_tokens": True}, 40, 30),
        ({"prompt_tokens": 0, "completion_tokens": 0}, 40, 30),
        ({"prompt_tokens": "a few", "completion_tokens": {"total": 3}}, 40, 30),
        ({"input_tokens": 9, "output_tokens": 2}, 9, 2),
    ],
)
async def test_usage_in_any_form_leaves_a_good_reply_good(
    usage: object, prompt: int, completion: int
) -> None:
    """What is missing is counted with the tokenizer: here a token per character."""
    endpoint = FakeEndpoint([replies(usage)])
    client, took = endpoint.client(PROMPT), Spending()
    body = {"messages": ["y" * 20], "model": "m" * 500}
    answer = await client.complete(body, "r", took, len)  # type: ignore[arg-type]
    assert read_reply(answer, "drop").text == "x" * 30
    assert took.requests == 1
    assert took.prompt_tokens == (
        prompt if prompt != 40 else len('{"messages": ["' + "y" * 20 + '"]}')
    )
    assert took.completion_tokens == completion


@pytest.mark.parametrize("usage", ["absent", None, {"completion_tokens": None}])
async def test_the_budget_ends_without_usage(usage: object) -> None:
    config = PROMPT.model_copy(update={"max_total_tokens": 100})
    client = FakeEndpoint([replies(usage)]).client(config)
    with pytest.raises(EngineError, match="budget is used up"):
        for number in range(100):
            await client.complete({"messages": ["y" * 20]}, f"r{number}", Spending(), len)


# Finish reasons


@pytest.mark.parametrize(
    ("finish", "cut"),
    [
        ("stop", False),
        ("STOP", False),
        ("end_turn", False),
        ("tool_calls", False),
        (None, False),
        ("something new", False),
        (3, False),
        ("length", True),
        ("max_tokens", True),
        ("MAX_TOKENS", True),
        ("model_length", True),
        ("error", True),
        ("abort", True),
    ],
)
def test_a_cut_reply_is_cut_in_every_spelling(finish: object, cut: bool) -> None:
    body = {"choices": [{"message": {"content": "part of"}, "finish_reason": finish}]}
    turn = read_reply(ChatReply.model_validate(body), "drop", 100)
    assert (turn.text, turn.refusal, turn.cut) == ("part of", "", cut)


@pytest.mark.parametrize(("used", "cut"), [(99, False), (100, True), ("100", True), (None, False)])
@pytest.mark.parametrize("finish", [None, "", "unheard of"])
def test_without_a_known_reason_the_number_of_tokens_decides(
    finish: str | None, used: object, cut: bool
) -> None:
    body = {
        "choices": [{"message": {"content": "part of"}, "finish_reason": finish}],
        "usage": {"completion_tokens": used},
    }
    assert read_reply(ChatReply.model_validate(body), "drop", 100).cut == cut


@pytest.mark.parametrize("finish", ["content_filter", "SAFETY", "refusal"])
def test_a_filtered_reply_is_a_refusal(finish: str) -> None:
    body = {"choices": [{"message": {"content": ""}, "finish_reason": finish}]}
    assert read_reply(ChatReply.model_validate(body), "drop").refusal


async def test_an_error_before_any_text_is_tried_again_and_paid() -> None:
    endpoint = FakeEndpoint([replies(None, "", "error"), says("yes")])
    took = Spending()
    answer = await endpoint.client(PROMPT).complete({"messages": []}, "r", took, len)
    assert read_reply(answer, "drop").text == "yes"
    assert (took.requests, took.prompt_tokens > 10) == (2, True)


async def test_null_texts_in_parts_and_calls_are_no_reason_to_throw_a_reply_away() -> None:
    message: dict[str, Any] = {"content": [{"type": "thinking", "text": None}, {"text": "yes"}]}
    body = {"choices": [{"message": message}]}
    endpoint = FakeEndpoint([lambda endpoint, request: JSONResponse(body)])
    answer = await endpoint.client(PROMPT).complete({}, "r", Spending())
    assert (read_reply(answer, "drop").text, len(endpoint.requests)) == ("yes", 1)


# Models


@pytest.mark.parametrize(
    ("model", "listed", "related"),
    [
        ("big:nitro", "big", True),
        ("qwen2.5", "qwen2.5:latest", True),
        ("big", "org/big", True),
        ("org/big:free", "big", True),
        ("Big", "big", True),
        ("gpt-x", "gpt-x-2026-01-01", True),
        ("big@1", "big", True),
        ("big", "bigger", False),
        ("m", "big", False),
    ],
)
def test_names_of_models_with_suffixes_and_tags(model: str, listed: str, related: bool) -> None:
    assert may_be_listed_as(model, listed) is related
    assert may_be_listed_as(listed, model) is related


@pytest.mark.parametrize("model", ["big:nitro", "BIG", "org/small", "big"])
async def test_a_name_that_may_be_listed_is_asked_for(model: str) -> None:
    endpoint = FakeEndpoint([says("yes")])
    client = endpoint.client(PROMPT.model_copy(update={"model": model}))
    warning = await client.check()
    assert (model in warning and "big, small" in warning) == (model != "big")
    assert endpoint.requests == [], "the check costs nothing"
    assert await client.complete({"model": model}, "r", Spending())


async def test_the_check_of_an_unknown_name_can_be_turned_off() -> None:
    client = FakeEndpoint([]).client(PROMPT)
    with pytest.raises(ConfigError, match=r"check_model = false"):
        await client.check()
    config = PROMPT.model_copy(update={"check_model": False})
    assert "asked for anyway" in await FakeEndpoint([]).client(config).check()


@pytest.mark.parametrize("response", [httpx.Response(404), httpx.Response(200, text="hello")])
async def test_without_a_list_there_is_a_warning(response: httpx.Response) -> None:
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: response))
    warning = await ChatClient(http, PROMPT, "").check()
    assert "does not list its models" in warning and "'m'" in warning


# Keys

SECRET = "sk-do\nnot-tell"


@pytest.mark.parametrize(
    "key", [SECRET, "sk-caf\u00e9-secret", "sk-\x00secret", "sk-\r\nsecret: x"]
)
@pytest.mark.parametrize(
    "use",
    [
        lambda key: ChatClient(httpx.AsyncClient(), PROMPT, key),
        lambda key: check_header(key, "the key"),
        lambda key: endpoint_token("TOKEN", "http://x", {"TOKEN": key}),
    ],
)
def test_a_key_that_no_header_may_have_is_refused_without_it(
    key: str, use: Callable[[str], object]
) -> None:
    with pytest.raises(ConfigError) as caught:
        use(key)
    text = str(caught.value)
    assert "sk-" not in text and "secret" not in text and "\n" not in text
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 520])
async def test_no_error_repeats_the_key(status: int) -> None:
    answer: Answer = lambda endpoint, request: PlainTextResponse(  # noqa: E731
        f"bad key {KEY} " * 40, status
    )
    endpoint = FakeEndpoint([answer])
    with pytest.raises((TeacherError, EngineError)) as caught:
        await endpoint.client(PROMPT).complete({}, "r", Spending())
    assert KEY not in str(caught.value)


async def test_an_error_of_the_connection_does_not_repeat_the_key() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.LocalProtocolError(f"Illegal header value b'Bearer {KEY}'")

    http = httpx.AsyncClient(transport=httpx.MockTransport(refuse))
    with pytest.raises(TeacherError) as caught:
        await ChatClient(http, PROMPT, KEY).complete({}, "r", Spending())
    assert KEY not in str(caught.value) and "***" in str(caught.value)
