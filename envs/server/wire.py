"""Messages between the tool server and its clients; each is validated when it is received.

HTTP bodies are msgpack or JSON, as `content-type` says; `incoming.py` has their limits. A batch is
answered item by item, in the order of the request; each item is a success or a typed error. If
every item fails, the response is the first item's error.

A frame of the WebSocket `/stream` is a msgpack array of messages `[number, kind, body]`. Requests
are `open` (StreamOpen), `call` (CallItem) and `close` (CloseRequest). Each request gets one answer
with the same number, as soon as it is ready: `opened` (OpenedSession), `answers` (array of
ToolAnswer), `closed` (CloseResponse) or `error` (WireError). A session ends with the connection it
was opened on.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Literal

import msgpack
from pydantic import BaseModel, ConfigDict, FailFast, Field, JsonValue

from envs.sandbox.isolation import IsolationReport
from envs.server.shapes import unpack
from envs.tools import SessionPurpose, ToolAnswer, ToolCall, ToolSet

JSON = "application/json"
MSGPACK = "application/msgpack"
ErrorKind = Literal[
    "bad_request",
    "unauthorized",
    "wrong_origin",
    "wrong_host",
    "not_found",
    "method_not_allowed",
    "too_slow",
    "head_too_large",
    "too_large",
    "unsupported_type",
    "unknown_tool_set",
    "unknown_session",
    "full",
    "sandbox",
]
STATUS_OF_ERROR: dict[ErrorKind, int] = {
    "bad_request": 400,
    "unauthorized": 401,
    "wrong_origin": 403,
    "wrong_host": 421,
    "not_found": 404,
    "unknown_session": 404,
    "method_not_allowed": 405,
    "unknown_tool_set": 409,
    "too_slow": 408,
    "head_too_large": 431,
    "too_large": 413,
    "unsupported_type": 415,
    "full": 503,
    "sandbox": 503,
}


class Wire(BaseModel):
    """A message; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WireError(Wire):
    """Reason why a request, or one item of it, failed.

    If `retry_after_s` is set (kind `full`), nothing was started and the same request may be sent
    again.
    """

    kind: ErrorKind
    message: str
    retry_after_s: float | None = None


class ErrorResponse(Wire):
    error: WireError


class OpenItem(Wire):
    """One session to open on the tool set with this `digest`."""

    digest: str = Field(max_length=64)
    seed: int = Field(ge=-(2**63), lt=2**63)
    purpose: SessionPurpose
    episode: str = Field(default="", max_length=1_024)
    """Id of the episode (and attempt) that the session belongs to; empty if there is none.

    It is recorded with the traffic and does not change what the session does.
    """


class OpenRequest(Wire):
    """Sessions to open; `tool_sets` maps digests to the sets that the server may not know yet."""

    sessions: Annotated[tuple[OpenItem, ...], FailFast()] = Field(min_length=1)
    tool_sets: dict[str, ToolSet] = {}


class OpenedSession(Wire):
    """An open session, or the error that prevented it."""

    id: str = ""
    isolation: str = ""
    error: WireError | None = None


class StreamOpen(Wire):
    """Request to open a session on the stream; `tool_set` if the server may not know it yet."""

    session: OpenItem
    tool_set: ToolSet | None = None


class OpenResponse(Wire):
    sessions: tuple[OpenedSession, ...]


class EncodedCall(Wire):
    """A call of one tool by name, with its arguments as text.

    `arguments` is the JSON text of an object. The server does not parse it, only the sandboxed
    child does. So hostile JSON costs the server nothing, and numbers and strings that msgpack
    cannot hold (integers beyond 64 bits, lone surrogates) arrive as they were written.
    """

    name: str
    arguments: str


class CallItem(Wire):
    """Calls of one session, which run in order."""

    session: str
    calls: Annotated[tuple[EncodedCall, ...], FailFast()] = Field(min_length=1)


class CallRequest(Wire):
    items: Annotated[tuple[CallItem, ...], FailFast()] = Field(min_length=1)


class CallResult(Wire):
    """Answers to item number `index` of the request, or the error that prevented them.

    A msgpack response is a sequence of CallResults, each sent as soon as it is ready, so that a
    slow session does not delay the others. A JSON response is one CallResponse, ordered by index.
    """

    index: int
    answers: tuple[ToolAnswer, ...] = ()
    error: WireError | None = None


class CallResponse(Wire):
    results: tuple[CallResult, ...]


class CloseRequest(Wire):
    ids: Annotated[tuple[str, ...], FailFast()]


class CloseResponse(Wire):
    """Number of the named sessions that were open."""

    closed: int


class Health(Wire):
    """State of a tool server.

    `isolation` is the summary of `report`. `status` is `unhealthy` while no sandbox can be started.
    Refusals and restarts are counted since the server started.
    """

    status: Literal["healthy", "unhealthy"]
    isolation: str
    report: IsolationReport | None = None
    sessions: int
    max_sessions: int
    idle_children: int
    tool_sets: int
    opens_waiting: int = 0
    """Sessions being opened, including those that wait for their turn."""
    calls_running: int = 0
    calls_throttled: int = 0
    """Number of these calls that are CPU-bound, long, and throttled in favour of short ones."""
    opens_refused: int = 0
    calls_refused: int = 0
    zygote_restarts: int = 0


def encoded_call(call: ToolCall) -> EncodedCall:
    """Return `call` in the form in which it is sent and recorded."""
    return EncodedCall(name=call.name, arguments=json.dumps(call.arguments))


def encode(message: BaseModel, *, as_json: bool = False) -> bytes:
    """Return the body of `message`, as msgpack or JSON."""
    if as_json:
        return message.model_dump_json().encode()
    body = msgpack.packb(message.model_dump(mode="json"))
    assert body is not None  # packb returns None only if it is given a packer
    return body


def pack_message(number: int, kind: str, body: BaseModel | Sequence[BaseModel]) -> bytes:
    """Return one message of a frame, as msgpack.

    Messages are packed one by one when they are ready; `pack_frame` then only joins the bytes.
    """
    if isinstance(body, BaseModel):
        content: object = body.model_dump(mode="json")
    else:
        content = [part.model_dump(mode="json") for part in body]
    packed = msgpack.packb([number, kind, content])
    assert packed is not None
    return packed


def pack_frame(messages: Sequence[bytes]) -> bytes:
    """Return the frame that holds messages which are packed already.

    A msgpack array is its header followed by its items, so the packed messages are not packed
    again.
    """
    return b"".join((msgpack.Packer().pack_array_header(len(messages)), *messages))


def unpack_frame(frame: bytes) -> list[tuple[int, str, JsonValue]]:
    """Return the messages of a server's frame, however many. Raises ValueError for a bad frame."""
    return messages_of(unpack(frame, most_values=None))


def messages_of(content: JsonValue) -> list[tuple[int, str, JsonValue]]:
    """Return the messages of a frame that was decoded. Raises ValueError for a bad frame."""
    if not isinstance(content, list):
        raise ValueError(f"expected an array of messages, found {type(content).__name__}")
    messages: list[tuple[int, str, JsonValue]] = []
    for message in content:
        match message:
            case [int() as number, str() as kind, body]:
                messages.append((number, kind, body))
            case _:
                raise ValueError(
                    "expected messages [number, kind, body], found an item of another form"
                )
    return messages
