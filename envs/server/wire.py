"""What client and tool server say to each other, checked where it enters.

HTTP bodies are msgpack or JSON (`content-type`). A batch is answered per item, in order; each item
is a success or a typed error. Where every item fails, the first error is that of the response.

A frame of the WebSocket `/stream` is a msgpack array of messages `[number, kind, body]`. Requests:
`open` (StreamOpen), `call` (CallItem), `close` (CloseRequest); each is answered once, under its
number, when it is ready: `opened` (OpenedSession), `answers` (array of ToolAnswer), `closed`
(CloseResponse) or `error` (WireError). Sessions opened on a connection end with it.
"""

import json
from collections.abc import Sequence
from typing import Literal, TypeVar

import msgpack
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from envs.sandbox.isolation import IsolationReport
from envs.tools import SessionPurpose, ToolAnswer, ToolCall, ToolSet

JSON = "application/json"
MSGPACK = "application/msgpack"
ErrorKind = Literal[
    "bad_request",
    "unauthorized",
    "not_found",
    "method_not_allowed",
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
    "not_found": 404,
    "unknown_session": 404,
    "method_not_allowed": 405,
    "unknown_tool_set": 409,
    "too_large": 413,
    "unsupported_type": 415,
    "full": 503,
    "sandbox": 503,
}


class Wire(BaseModel):
    """A message; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WireError(Wire):
    """Why a request or one item of it failed.

    With `retry_after_s` (kind `full`) nothing was begun, and the same may be sent again.
    """

    kind: ErrorKind
    message: str
    retry_after_s: float | None = None


class ErrorResponse(Wire):
    error: WireError


class OpenItem(Wire):
    """One session to open on the tool set called `digest`."""

    digest: str
    seed: int = Field(ge=-(2**63), lt=2**63)
    purpose: SessionPurpose


class OpenRequest(Wire):
    """`tool_sets` holds, by digest, the sets that the server may not have seen yet."""

    sessions: tuple[OpenItem, ...] = Field(min_length=1)
    tool_sets: dict[str, ToolSet] = {}


class OpenedSession(Wire):
    """An open session, or why there is none."""

    id: str = ""
    isolation: str = ""
    error: WireError | None = None


class StreamOpen(Wire):
    """An open on the stream; `tool_set` where the server may not have seen it yet."""

    session: OpenItem
    tool_set: ToolSet | None = None


class OpenResponse(Wire):
    sessions: tuple[OpenedSession, ...]


class WireCall(Wire):
    """A call of one tool by name.

    `arguments` is the JSON text of an object; the server passes it on to the sandbox unread, so
    numbers and strings that msgpack cannot hold arrive as they were written.
    """

    name: str
    arguments: str


class CallItem(Wire):
    """Calls of one session, run in order."""

    session: str
    calls: tuple[WireCall, ...] = Field(min_length=1)


class CallRequest(Wire):
    items: tuple[CallItem, ...] = Field(min_length=1)


class CallResult(Wire):
    """Answers to item number `index` of the request; or why there are none.

    A msgpack response is a sequence of these, each sent when it is ready; a JSON response is one
    CallResponse, ordered by index.
    """

    index: int
    answers: tuple[ToolAnswer, ...] = ()
    error: WireError | None = None


class CallResponse(Wire):
    results: tuple[CallResult, ...]


class CloseRequest(Wire):
    ids: tuple[str, ...]


class CloseResponse(Wire):
    """How many of the sessions were open."""

    closed: int


class Health(Wire):
    """`isolation` is the summary of the report; `status` is `unhealthy` while no sandbox starts.

    Refusals and restarts are counted since the start.
    """

    status: Literal["healthy", "unhealthy"]
    isolation: str
    report: IsolationReport | None = None
    sessions: int
    max_sessions: int
    idle_children: int
    tool_sets: int
    opens_waiting: int = 0
    """Opens under way, those that wait for their turn included."""
    calls_running: int = 0
    calls_in_turns: int = 0
    """Of these, those that compute for long and give way to short ones."""
    opens_refused: int = 0
    calls_refused: int = 0
    zygote_restarts: int = 0


def wire_call(call: ToolCall) -> WireCall:
    """Return `call` as it is sent and recorded."""
    return WireCall(name=call.name, arguments=json.dumps(call.arguments))


WireT = TypeVar("WireT", bound=BaseModel)


def encode(message: BaseModel, *, as_json: bool = False) -> bytes:
    """Return the body of `message`: msgpack, or JSON."""
    if as_json:
        return message.model_dump_json().encode()
    body = msgpack.packb(message.model_dump(mode="json"))
    assert body is not None  # None only with a packer of one's own
    return body


def decode(model: type[WireT], body: bytes, *, as_json: bool = False) -> WireT:
    """Parse and check a body. Raises ValueError, whatever is wrong with it."""
    if as_json:
        return model.model_validate_json(body, strict=True)
    return model.model_validate(_unpack(body))


def first_complaint(error: ValidationError) -> str:
    """Return the first thing that is wrong, and where."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "body"
    return f"{where}: {first['msg']}"


def pack_message(number: int, kind: str, body: BaseModel | Sequence[BaseModel]) -> bytes:
    """Return one message of a frame."""
    if isinstance(body, BaseModel):
        content: object = body.model_dump(mode="json")
    else:
        content = [part.model_dump(mode="json") for part in body]
    packed = msgpack.packb([number, kind, content])
    assert packed is not None
    return packed


def pack_frame(messages: Sequence[bytes]) -> bytes:
    """Return the frame of messages that are packed already."""
    return b"".join((msgpack.Packer().pack_array_header(len(messages)), *messages))


def unpack_frame(frame: bytes) -> list[tuple[int, str, JsonValue]]:
    """Return the messages of a frame. Raises ValueError, whatever is wrong with it."""
    content = _unpack(frame)
    if not isinstance(content, list):
        raise ValueError("expected an array of messages")
    messages: list[tuple[int, str, JsonValue]] = []
    for message in content:
        match message:
            case [int() as number, str() as kind, body]:
                messages.append((number, kind, body))
            case _:
                raise ValueError("expected messages [number, kind, body]")
    return messages


def _unpack(content: bytes) -> JsonValue:
    try:
        return msgpack.unpackb(content)
    except (msgpack.UnpackException, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the body is no msgpack: {error!r}") from error
