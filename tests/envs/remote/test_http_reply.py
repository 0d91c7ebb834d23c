"""What a policy is told of a response: its text, or a word on what is no text."""

import gzip
import zlib

import pytest

from envs.config import ToolServerConfig
from envs.endpoints import HttpEndpoint, HttpOperation
from envs.remote.http_client import HttpTools
from envs.tools import AnswerStatus, ToolAnswer, ToolCall, ToolSet, ToolSpec
from tests.envs.remote.counted_api import api, response

PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452") + bytes(range(256))
LIMIT = 1000


async def told(reply: bytes) -> ToolAnswer:
    async with api(lambda _: reply) as served:
        endpoint = HttpEndpoint(
            base_url=f"http://127.0.0.1:{served.port}",
            operations=(HttpOperation(method="get", path="/x"),),
            allowed_hosts=(f"127.0.0.1:{served.port}",),
        )
        spec = ToolSpec(name="x", description="", parameters={"type": "object"})
        service = HttpTools(ToolServerConfig(reply_limit_bytes=LIMIT), {})
        tools = ToolSet(tools=(spec,), endpoint=endpoint)
        session = await service.open_session(tools, 1, "execution")
        (answer,) = await session.call([ToolCall(name="x", arguments={})])
        await session.close()
    return answer


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        ("é".encode("latin-1"), "text/plain; charset=iso-8859-1", "é"),
        ("é".encode(), "application/json; charset=utf8mb4", "é"),
        ("é".encode(), "text/plain; charset=hex", "é"),
        ("é".encode(), "", "é"),
        (b'{"title": "bad"}', "application/problem+json", '{"title": "bad"}'),
        (b"<svg/>", "image/svg+xml", "<svg/>"),
        (b"a,b", "application/octet-stream", "a,b"),
        (PNG, "image/png", f"[image/png, {len(PNG)} bytes]"),
        (PNG, "", f"[binary data, {len(PNG)} bytes]"),
        (PNG, "application/octet-stream", f"[application/octet-stream, {len(PNG)} bytes]"),
        (PNG * 9, "image/png", f"[image/png, more than {LIMIT} bytes]"),
    ],
)
async def test_text_is_shown_and_other_bytes_are_named(body: bytes, kind: str, text: str) -> None:
    headers = {"content_type": kind} if kind else {}
    answer = await told(response(200, body, **headers))
    assert (answer.status, answer.text) == (AnswerStatus.OK, text)


async def test_a_file_is_named_and_an_error_too() -> None:
    named = {"content_type": "application/pdf", "content_disposition": 'x; filename="a b.pdf"'}
    assert (
        await told(response(200, PNG, **named))
    ).text == f"[application/pdf a b.pdf, {len(PNG)} bytes]"
    answer = await told(response(404, PNG, content_type="image/png"))
    assert answer.text == f"404 Word: [image/png, {len(PNG)} bytes]"
    assert answer.status is AnswerStatus.TOOL_ERROR


async def test_a_success_without_a_body_says_where_the_result_is() -> None:
    assert (await told(response(204))).text == '{"status": 204}'
    answer = await told(response(202, location="/jobs/7"))
    assert answer.text == '{"status": 202, "location": "/jobs/7"}'


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_compressed_reply_is_expanded_up_to_the_limit(encoding: str, compress) -> None:
    assert (await told(response(200, compress(b"fine"), content_encoding=encoding))).text == "fine"
    bomb = await told(response(200, compress(b"x" * 50_000_000), content_encoding=encoding))
    assert (bomb.text, bomb.truncated) == ("x" * LIMIT, True)


@pytest.mark.parametrize("encoding", ["gzip", "br"])
async def test_a_reply_that_cannot_be_expanded_is_the_worlds_business(encoding: str) -> None:
    answer = await told(response(200, "plain", content_encoding=encoding))
    assert answer.status is AnswerStatus.INFRA_ERROR
