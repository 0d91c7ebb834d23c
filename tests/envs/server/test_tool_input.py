"""Bad requests over a real connection: typed 4xx, whatever they are."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from tests.envs.server.tool_serving import TOKEN, TOOLS, Served, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")
OPENING = {
    "sessions": [{"digest": TOOLS.digest, "seed": 1, "purpose": "trial"}],
    "tool_sets": {TOOLS.digest: TOOLS.model_dump(mode="json")},
}
JSON = "application/json"
MSGPACK = "application/msgpack"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=served.address, headers=headers, timeout=60) as http:
        yield http


@pytest.mark.parametrize(
    ("path", "body", "content_type", "status", "kind"),
    [
        ("/calls", b"{", JSON, 400, "bad_request"),
        ("/calls", b'{"items": [], "items": 1}', JSON, 400, "bad_request"),
        ("/calls", b"[" * 100_000, JSON, 400, "bad_request"),
        ("/calls", b"\x91" * 100_000, MSGPACK, 400, "bad_request"),
        ("/calls", b"\xdd\xff\xff\xff\xff", MSGPACK, 400, "bad_request"),
        ("/calls", b"\x81\xa5items\xc7\x04\x01abcd", MSGPACK, 400, "bad_request"),
        ("/calls", b"\x81\xa5items\xd9\x01\xff", MSGPACK, 400, "bad_request"),
        ("/calls", b'{"items": [{"session": "\\ud800", "calls": []}]}', JSON, 400, "bad_request"),
        ("/sessions", b'{"sessions": [{"digest": "d", "seed": 1e400}]}', JSON, 400, "bad_request"),
        ("/sessions/close", b'{"ids": "all"}', JSON, 400, "bad_request"),
        ("/calls", b"items=1", "application/x-www-form-urlencoded", 415, "unsupported_type"),
        ("/calls", b"{}", "", 415, "unsupported_type"),
        ("/nowhere", b"{}", JSON, 404, "not_found"),
        ("/health", b"{}", JSON, 405, "method_not_allowed"),
    ],
)
async def test_bad_bodies(
    http: httpx.AsyncClient, path: str, body: bytes, content_type: str, status: int, kind: str
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = await http.post(path, content=body, headers=headers)
    assert (response.status_code, response.json()["error"]["kind"]) == (status, kind)


async def test_stated_size_is_enough_to_refuse(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(
        f"POST /calls HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n"
        f"content-type: {JSON}\r\ncontent-length: 100000000\r\n\r\n".encode()
    )
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")  # without a byte of the body
        answer = head + await reader.readuntil(b"}}")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"too_large"' in answer
    writer.close()


async def test_body_of_a_hundred_megabytes_is_refused(http: httpx.AsyncClient) -> None:
    for content in (bytes(100_000_000), chunks(100)):
        response = await http.post("/calls", content=content, headers={"content-type": JSON})
        assert response.status_code == 413
        assert response.json()["error"]["kind"] == "too_large"


async def test_endless_body_is_cut_off(http: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.TransportError):  # this client reads nothing before it has sent all
        await http.post("/calls", content=chunks(1_000_000), headers={"content-type": JSON})
    assert (await http.get("/health")).status_code == 200


async def chunks(count: int) -> AsyncIterator[bytes]:
    """Yield so many megabytes."""
    for _ in range(count):
        yield bytes(10**6)


@pytest.mark.parametrize("arguments", ["", "{", "[]", "1", "null", '{"n": NaN}', '{"m": 1}'])
async def test_arguments_that_no_schema_allows_are_the_tools_business(
    http: httpx.AsyncClient, arguments: str
) -> None:
    opened = (await http.post("/sessions", json=OPENING)).json()["sessions"][0]
    call = {"name": "add", "arguments": arguments}
    body = {"items": [{"session": opened["id"], "calls": [call]}]}
    response = await http.post("/calls", json=body)
    answer = response.json()["results"][0]["answers"][0]
    assert response.status_code == 200
    assert answer["status"] in ("ok", "tool_error")
    assert (await http.delete(f"/sessions/{opened['id']}")).status_code == 204


async def test_document_names_what_routes_take_and_give(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    calls = document["paths"]["/calls"]["post"]
    assert set(calls["requestBody"]["content"]) == {JSON, MSGPACK}
    assert {"200", "400", "401", "404", "413", "415", "503"} <= set(calls["responses"])
    schemas = document["components"]["schemas"]
    assert "items" in schemas["CallRequest"]["properties"]
    references = str(document).split("#/components/schemas/")[1:]
    assert {text.split("'")[0] for text in references} <= set(schemas)
