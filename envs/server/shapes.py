"""What a message of an unknown client may look like, before pydantic reads it.

Pydantic makes a list of all faults of a message, and so can take a hundred times as long for a
wrong message as for a right one. So the number of values in a message is limited before it is
decoded, and keys are compared here. What is left for pydantic has few faults.
"""

import re
from typing import Any

import msgpack
from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)
MOST_VALUES = 2**18
"""Values in one message of the native protocol; the text of a source or of arguments is one."""
_UNCOUNTED_BYTES = 4_096
"""Messages up to this size cannot have many values."""
_MOST_FAULTS = 1_024
_SHOWN = 300
_FIRST_BYTES = 2**20
"""A message is first counted up to here: that is enough for those that are made of values alone."""
_TEXT = re.compile(rb'"[^"]*(?:"|$)')
_SEPARATORS = b",:[{"
_OTHER_BYTES = bytes(set(range(256)) - {*_SEPARATORS, ord('"')})


def unpack(content: bytes, most_values: int | None = MOST_VALUES) -> JsonValue:
    """Decode msgpack. Raises ValueError for other bytes, and for more than `most_values` values."""
    hooks: dict[str, Any] = {}
    if most_values is not None and len(content) > _UNCOUNTED_BYTES:
        count = _Count(most_values)
        hooks = {
            "list_hook": count,
            "object_hook": count,
            "max_array_len": most_values,
            "max_map_len": most_values,
        }
    try:
        return msgpack.unpackb(content, **hooks)
    except (msgpack.UnpackException, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"expected a msgpack body, found other bytes: {error!r}") from error


def read_json(content: bytes | str, most_values: int = MOST_VALUES) -> JsonValue:
    """Decode JSON. Raises ValueError for other text, and for more than `most_values` values."""
    body = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    if len(body) > most_values and _has_more(body, most_values):
        raise ValueError(_too_many(most_values))
    try:
        return _JSON.validate_json(body)
    except ValidationError as error:
        raise ValueError(first_complaint(error)) from error


def check_keys(value: object, allowed: frozenset[str], where: str) -> None:
    """Raise ValueError if `value` is an object with a key that is not allowed."""
    if isinstance(value, dict) and not value.keys() <= allowed:
        unknown = next(key for key in value if key not in allowed)
        place = f"{where}.{str(unknown)[:80]}".lstrip(".")
        raise ValueError(f"{place}: unknown key; expected {', '.join(sorted(allowed))}")


def check_texts(value: object, where: str) -> None:
    """Raise ValueError if `value` is an array or an object that holds anything but texts."""
    items = list(value.values()) if isinstance(value, dict) else value
    if isinstance(items, list) and not set(map(type, items)) <= {str}:
        raise ValueError(f"{where}: expected texts only, found other values")


def check_plain(value: object, where: str) -> None:
    """Raise ValueError if `value` holds bytes, which msgpack has and JSON has not."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            check_texts(list(each), where)
            left += each.values()
        elif isinstance(each, list):
            left += each
        elif isinstance(each, bytes):
            raise ValueError(f"{where}: expected JSON values, found bytes")


def keys_of(model: type[BaseModel]) -> frozenset[str]:
    """Return the keys that `model` knows."""
    return frozenset(model.model_fields)


def first_complaint(error: ValidationError, whole: str = "body") -> str:
    """Return the first validation error and the field it is in; `whole` names the message."""
    if error.error_count() > _MOST_FAULTS:  # a list of all would take long
        return f"{whole}: expected {error.title}, found {error.error_count()} faults"
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part)[:80] for part in first["loc"]) or whole
    return f"{where}: {first['msg']}"[:_SHOWN]


class _Count:
    """Counts the values of a msgpack message while it is decoded."""

    def __init__(self, most: int) -> None:
        self._left = self._most = most

    def __call__(self, container: Any) -> Any:
        self._left -= len(container) + 1
        if self._left < 0:
            raise ValueError(_too_many(self._most))
        return container


def _has_more(body: bytes, most: int) -> bool:
    """Return whether a JSON text has more values than `most`, without decoding it."""
    return any(
        sum(map(part.count, _SEPARATORS)) > most and _counted(part, most) > most
        for part in (body[:_FIRST_BYTES], body)
    )


def _counted(body: bytes, enough: int) -> int:
    """Return the number of separators outside of texts, at least the number of values; or that of
    the texts, if it is more than `enough`.
    """
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _OTHER_BYTES)
    texts = bare.count(b'"') // 2
    return texts if texts > enough else len(_TEXT.sub(b"", bare))


def _too_many(most: int) -> str:
    return f"expected at most {most} values in one message, found more: split it"
