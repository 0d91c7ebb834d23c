"""Small requests that would keep a server busy: each is refused at its first fault, soon."""

import json
import time
from collections.abc import AsyncIterator

import httpx
import msgpack
import psutil
import pytest
import pytest_asyncio
from pydantic import JsonValue, ValidationError

from envs.server import incoming
from envs.server.guard import BODY_LIMIT_BYTES
from envs.server.incoming import read_body, read_frame
from envs.server.shapes import MOST_VALUES, read_json, unpack
from envs.server.wire import CallRequest, CloseRequest, OpenRequest, WireError
from tests.envs.server.tool_serving import TOKEN, TOOLS, Served, serving

MANY = 60_000
SOON_S = 2.0
"""Two million faults took a hundred seconds; a right request of this size takes a fraction of one,
on a machine with nothing else to do.
"""
SET = TOOLS.model_dump(mode="json")
OPENING = {"digest": TOOLS.digest, "seed": 1, "purpose": "trial"}


def keyed(value: object) -> dict[str, object]:
    return {f"k{number}": value for number in range(MANY)}


def with_set(**parts: object) -> dict[str, object]:
    return {"sessions": [OPENING], "tool_sets": {"d": SET | parts}}


BODIES: dict[str, tuple[type, object]] = {
    "empty items": (CallRequest, {"items": [{}] * MANY}),
    "items that are numbers": (CallRequest, {"items": [0] * MANY}),
    "empty calls": (CallRequest, {"items": [{"session": "s", "calls": [{}] * MANY}]}),
    "keys of the request": (CallRequest, {"items": [], **keyed(0)}),
    "keys of an item": (CallRequest, {"items": [{"session": "s", "calls": [], **keyed(0)}]}),
    "keys of a call": (CallRequest, {"items": [{"session": "s", "calls": [keyed(0)]}]}),
    "ids that are numbers": (CloseRequest, {"ids": [0] * MANY}),
    "sessions that are numbers": (OpenRequest, {"sessions": [0] * MANY}),
    "keys of a session": (OpenRequest, {"sessions": [OPENING | keyed(0)]}),
    "tool sets that are numbers": (OpenRequest, {"sessions": [OPENING], "tool_sets": keyed(0)}),
    "keys of a tool set": (OpenRequest, with_set(**keyed(0))),
    "empty tools": (OpenRequest, with_set(tools=[{}] * MANY)),
    "keys of a tool": (OpenRequest, with_set(tools=[SET["tools"][0] | keyed(0)])),
    "sources that are numbers": (OpenRequest, with_set(sources=[0] * MANY)),
    "functions that are numbers": (OpenRequest, with_set(functions=[0] * MANY)),
    "modules that are numbers": (OpenRequest, with_set(modules=keyed(0))),
    "files that are numbers": (OpenRequest, with_set(files=keyed(0))),
    "setups that are numbers": (OpenRequest, with_set(setup=keyed(0))),
    "empty left out": (OpenRequest, with_set(left_out=[{}] * MANY)),
    "empty parts": (OpenRequest, with_set(parts=[{}] * MANY)),
    "an endpoint": (OpenRequest, with_set(endpoint=keyed(0))),
    "an adaptation": (OpenRequest, with_set(adaptation={"rules": [{}] * MANY})),
}
BYTES: dict[str, tuple[type, object]] = {
    "bytes in parameters": (
        OpenRequest,
        with_set(tools=[SET["tools"][0] | {"parameters": {"x": [b""] * MANY}}]),
    ),
    "bytes in a setup": (OpenRequest, with_set(setup={"A": {"x": [b""] * MANY}})),
    "bytes as keys": (
        OpenRequest,
        with_set(setup={"A": {str(n).encode(): 0 for n in range(MANY // 2)}}),
    ),
}


def packed(content: object) -> bytes:
    body = msgpack.packb(content)
    assert body is not None
    return body


@pytest.mark.parametrize("name", [*BODIES, *BYTES])
@pytest.mark.parametrize("as_json", [True, False], ids=["json", "msgpack"])
def test_a_list_of_faults_is_one_fault(name: str, *, as_json: bool) -> None:
    model, content = (BODIES | BYTES)[name]
    if as_json and name in BYTES:
        return
    body = json.dumps(content).encode() if as_json else packed(content)
    assert len(body) < BODY_LIMIT_BYTES
    began = time.process_time()
    with pytest.raises(ValueError) as fault:
        read_body(model, body, as_json=as_json)
    assert time.process_time() - began < SOON_S
    assert 0 < len(str(fault.value)) < 1_000
    if isinstance(fault.value.__cause__, ValidationError):
        assert fault.value.__cause__.error_count() < 100


@pytest.mark.parametrize(
    "name", ["keys of an item", "empty calls", "keys of a call", "keys of a tool set"]
)
def test_messages_of_a_frame_have_one_fault_each(name: str) -> None:
    _, content = BODIES[name]
    assert isinstance(content, dict)
    if "items" in content:
        message: list[JsonValue] = [1, "call", content["items"][0]]
    else:
        message = [1, "open", {"session": OPENING, "tool_set": content["tool_sets"]["d"]}]
    began = time.process_time()
    [found] = read_frame(packed([message]))
    assert time.process_time() - began < SOON_S
    assert isinstance(found.request, WireError) and found.request.kind == "bad_request"


def test_a_frame_has_room_for_so_many_messages() -> None:
    most = incoming.MOST_MESSAGES
    close: list[JsonValue] = [1, "close", {"ids": []}]
    assert len(read_frame(packed([close] * most))) == most
    with pytest.raises(ValueError, match=f"expected at most {most} messages"):
        read_frame(packed([close] * (most + 1)))


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd" + (2**23).to_bytes(4, "big") + b"\x80" * 2**23,
        b"\xdc\x10\x00" + (b"\xdc\x08\x00" + b"\x80" * 2_048) * 4_096,
        b"\x91" * 500 + b"\xdd" + (2**22).to_bytes(4, "big") + b"\x00" * 2**22,
        b"\xdf" + (2**22).to_bytes(4, "big") + b"\xa1a\x00" * 2**22,
    ],
)
def test_values_of_a_byte_each_are_not_all_made(body: bytes) -> None:
    before = psutil.Process().memory_info().rss
    with pytest.raises(ValueError, match=r"exceeds|at most"):
        unpack(body)
    assert psutil.Process().memory_info().rss - before < 64 * 2**20


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"{}," * 2**21 + b"{}]",
        b"[" + b"[]," * 2**21 + b"[]]",
        b"[" + b'"",' * 2**21 + b'""]',
        b"[" + b"1," * 2**22 + b"1]",
        b'{"a":"' + b"," * 2**20 + b'","b":[' + b"1," * 2**20 + b"1]}",
    ],
)
def test_json_has_the_same_limit(text: bytes) -> None:
    before = psutil.Process().memory_info().rss
    with pytest.raises(ValueError, match=f"at most {MOST_VALUES} values"):
        read_json(text)
    assert psutil.Process().memory_info().rss - before < 64 * 2**20


@pytest.mark.parametrize("text", ["," * 4_000_000, '{"[' * 1_000_000, '\\"' * 2_000_000, "\\" * 9])
def test_what_stands_in_a_text_is_one_value(text: str) -> None:
    assert read_json(json.dumps({"text": text})) == {"text": text}


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


async def test_bombs_over_a_connection_are_told_and_the_server_goes_on(served: Served) -> None:
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/msgpack"}
    routes = {OpenRequest: "/sessions", CallRequest: "/calls", CloseRequest: "/sessions/close"}
    before = psutil.Process().memory_info().rss
    async with httpx.AsyncClient(base_url=served.address, headers=headers, timeout=60) as http:
        for model, content in (BODIES | BYTES).values():
            refused = await http.post(routes[model], content=packed(content))
            assert refused.status_code == 400, refused.text
            assert refused.json()["error"]["kind"] == "bad_request"
        long = await http.post("/calls", content=b"\x00" * (BODY_LIMIT_BYTES + 1))
        assert long.status_code == 413
        assert (await http.get("/health")).json()["status"] == "healthy"
    assert psutil.Process().memory_info().rss - before < 100 * 2**20
