"""What client and tool server say to each other, checked where it enters.

Bodies are msgpack or JSON (`content-type`). A batch is answered per item, in order; each item is a
success or a typed error. Where every item fails for one reason, that is the status of the response.
"""

from typing import Literal, TypeVar

import msgpack
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from envs.tools import SessionPurpose, ToolAnswer, ToolSet

MSGPACK = "application/msgpack"
ErrorKind = Literal[
    "bad_request",
    "unauthorized",
    "too_large",
    "unknown_tool_set",
    "unknown_session",
    "full",
    "sandbox",
]
STATUS_OF_ERROR: dict[ErrorKind, int] = {
    "bad_request": 400,
    "unauthorized": 401,
    "unknown_session": 404,
    "unknown_tool_set": 409,
    "too_large": 413,
    "full": 503,
    "sandbox": 503,
}


class Wire(BaseModel):
    """A message; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WireError(Wire):
    """Why a request or one item of it failed."""

    kind: ErrorKind
    message: str


class ErrorResponse(Wire):
    error: WireError


class OpenItem(Wire):
    """One session to open on the tool set called `digest`."""

    digest: str
    seed: int
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
    """`isolation` is the achieved level; `status` is `failed` while no sandbox can be started."""

    status: Literal["ok", "failed"]
    isolation: str
    sessions: int
    max_sessions: int
    idle_children: int
    tool_sets: int


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
        return model.model_validate_json(body)
    try:
        content: JsonValue = msgpack.unpackb(body)
    except (msgpack.UnpackException, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the body is no msgpack: {error!r}") from error
    return model.model_validate(content)
