"""Requests of clients: decoded, checked and validated, and refused at their first fault."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from envs.server.shapes import (
    check_keys,
    check_plain,
    check_texts,
    first_complaint,
    keys_of,
    read_json,
    unpack,
)
from envs.server.tool_host import check_served
from envs.server.wire import (
    CallItem,
    CallRequest,
    CloseRequest,
    EncodedCall,
    OpenItem,
    OpenRequest,
    StreamOpen,
    WireError,
    messages_of,
)
from envs.tools import LeftOut, ToolSet, ToolSpec

MOST_ITEMS = 16_384
"""Sessions, items, calls and ids in one request."""
MOST_TOOL_SETS = 1_024
MOST_MESSAGES = 4_096
"""Messages in one frame of `/stream`; clients send at most 512."""
BIG_BYTES = 65_536
"""Requests above this size are read in a thread, so that no other session waits for it."""
_USUAL_KEYS = 2
"""Keys of a CallItem and of a call; pydantic says which of so few is wrong."""
_RequestT = TypeVar("_RequestT", bound=BaseModel)
_KEYS = {
    model: keys_of(model)
    for model in (
        *(CallItem, CallRequest, CloseRequest, EncodedCall, OpenItem, OpenRequest, StreamOpen),
        *(ToolSet, ToolSpec, LeftOut),
    )
}


class Incoming(NamedTuple):
    """A request on the stream, or the error that answers it."""

    number: int
    request: StreamOpen | CallItem | CloseRequest | WireError


def read_body(model: type[_RequestT], body: bytes, *, as_json: bool) -> _RequestT:
    """Return the request in a body. Raises ValueError with the first fault of a bad one."""
    content = read_json(body) if as_json else unpack(body)
    _CHECKS[model](content)
    try:
        if as_json:
            return model.model_validate_json(body, strict=True)
        return model.model_validate(content)
    except ValidationError as error:
        raise ValueError(first_complaint(error)) from error


def read_frame(frame: bytes) -> list[Incoming]:
    """Return the requests in a frame, a bad one as an error.

    Raises ValueError for a frame that holds no messages, or too many.
    """
    messages = messages_of(unpack(frame))
    if len(messages) > MOST_MESSAGES:
        raise ValueError(f"expected at most {MOST_MESSAGES} messages, found {len(messages)}")
    return [Incoming(number, _request(kind, body)) for number, kind, body in messages]


def _request(kind: str, body: JsonValue) -> StreamOpen | CallItem | CloseRequest | WireError:
    try:
        if kind == "call":
            _check_item(body)
            return CallItem.model_validate(body)
        if kind == "open":
            _check_stream_open(body)
            opening = StreamOpen.model_validate(body)
            if opening.tool_set:
                _ = opening.tool_set.digest  # takes long for a big set, and is kept
            return opening
        if kind == "close":
            _check_close(body)
            return CloseRequest.model_validate(body)
        raise ValueError(f"expected open, call or close, found {kind[:80]!r}")
    except ValidationError as error:
        return WireError(kind="bad_request", message=first_complaint(error))
    except ValueError as error:
        return WireError(kind="bad_request", message=str(error))


def _check_item(body: JsonValue, where: str = "") -> None:
    """Look for many keys alone: every call of every session comes through here."""
    if not isinstance(body, dict):
        return
    if len(body) > _USUAL_KEYS:
        check_keys(body, _KEYS[CallItem], where)
    for call in _array(body.get("calls"), "calls"):
        if isinstance(call, dict) and len(call) > _USUAL_KEYS:
            check_keys(call, _KEYS[EncodedCall], "calls")


def _check_calls(body: JsonValue) -> None:
    if isinstance(body, dict):
        check_keys(body, _KEYS[CallRequest], "")
        for item in _array(body.get("items"), "items"):
            _check_item(item, "items")


def _check_close(body: JsonValue) -> None:
    if isinstance(body, dict):
        check_keys(body, _KEYS[CloseRequest], "")
        _array(body.get("ids"), "ids")


def _check_open(body: JsonValue) -> None:
    if not isinstance(body, dict):
        return
    check_keys(body, _KEYS[OpenRequest], "")
    for item in _array(body.get("sessions"), "sessions"):
        check_keys(item, _KEYS[OpenItem], "sessions")
    tool_sets = body.get("tool_sets")
    if isinstance(tool_sets, dict) and len(tool_sets) > MOST_TOOL_SETS:
        raise ValueError(f"tool_sets: expected at most {MOST_TOOL_SETS}, found {len(tool_sets)}")
    for digest, tool_set in tool_sets.items() if isinstance(tool_sets, dict) else ():
        _check_tool_set(tool_set, f"tool_sets.{digest[:80]}")


def _check_stream_open(body: JsonValue) -> None:
    if isinstance(body, dict):
        check_keys(body, _KEYS[StreamOpen], "")
        check_keys(body.get("session"), _KEYS[OpenItem], "session")
        if body.get("tool_set") is not None:
            _check_tool_set(body["tool_set"], "tool_set")


def _check_tool_set(value: JsonValue, where: str) -> None:
    """Raise ValueError for what would be a list of faults: one per key, tool or text."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a tool set, found {type(value).__name__}")
    check_keys(value, _KEYS[ToolSet], where)
    check_served(bool(value.get("endpoint") or value.get("adaptation") or value.get("parts")))
    for key in ("sources", "functions", "modules", "files"):
        check_texts(value.get(key), f"{where}.{key}")
    for key in ("tools", "setup"):
        check_plain(value.get(key), f"{where}.{key}")
    for key, model in (("tools", ToolSpec), ("left_out", LeftOut)):
        for part in _array(value.get(key), f"{where}.{key}"):
            check_keys(part, _KEYS[model], f"{where}.{key}")
            model.model_validate(part)
    setup = value.get("setup")
    if isinstance(setup, dict) and not set(map(type, setup.values())) <= {dict}:
        raise ValueError(f"{where}.setup: expected objects, found other values")


def _array(value: JsonValue, where: str) -> list[JsonValue]:
    """Return an array, an empty one for anything else. Raises ValueError if it is too long."""
    if not isinstance(value, list):
        return []
    if len(value) > MOST_ITEMS:
        raise ValueError(f"{where}: expected at most {MOST_ITEMS} items, found {len(value)}")
    return value


_CHECKS: dict[type[BaseModel], Callable[[JsonValue], None]] = {
    OpenRequest: _check_open,
    CallRequest: _check_calls,
    CloseRequest: _check_close,
}
