"""Changed JSON types of parameters: schemas are changed, and values are converted back."""

import json
import re
from typing import Literal, TypeGuard

from pydantic import JsonValue

from envs.tools import JsonObject

JsonType = Literal["string", "integer", "number", "boolean"]

DRIFTS: dict[JsonType, tuple[JsonType, ...]] = {
    "integer": ("string", "number"),
    "number": ("string",),
    "boolean": ("string", "integer"),
    "string": ("integer",),
}
"""Maps a base type to the types that it may change to."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,400}")
_NUMBER = re.compile(r"-?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,3})?")
_DROPPED = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format")
_MAX_SHOWN = 80


def converted(value: JsonValue, to: JsonType) -> JsonValue:
    """Return `value` as the type that the base tool expects.

    Null, and a value that already has the type, are returned unchanged. Raises ValueError, with a
    message for the policy, if the value cannot be converted.
    """
    if value is None:
        return None
    if to == "string":
        return _as_string(value)
    if to == "boolean":
        return _as_boolean(value)
    return _as_number(value, to)


def drifted(value: JsonValue, to: JsonType) -> JsonValue:
    """Return a base value as callers write it for the changed type; `converted` is the inverse."""
    if value is None or isinstance(value, list | dict):
        return value
    if to == "string":
        return value if isinstance(value, str) else json.dumps(value)
    if to == "integer" and (isinstance(value, bool) or _is_integer_text(value)):
        return int(value)
    return value


def base_type(schema: JsonObject) -> JsonType | None:
    """Return the type of a parameter if it can change without loss, otherwise None.

    A string can change only if its enum contains nothing but integers, so that no value is lost.
    """
    base, options = schema.get("type"), schema.get("enum")
    if base == "string":
        digits = isinstance(options, list) and options and all(map(_is_integer_text, options))
        return "string" if digits else None
    return next((name for name in DRIFTS if name == base), None)


def drifted_schema(schema: JsonObject, to: JsonType) -> JsonObject:
    """Return a parameter's schema with type `to`, without the keywords of the old type."""
    fresh: JsonObject = {key: item for key, item in schema.items() if key not in _DROPPED}
    fresh["type"] = to
    for key in ("enum", "examples"):
        options = fresh.get(key)
        if isinstance(options, list):
            fresh[key] = [drifted(option, to) for option in options]
    for key in ("default", "const", "example"):
        if key in fresh:
            fresh[key] = drifted(fresh[key], to)
    return fresh


def _as_string(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        raise ValueError(f"expected a single value, found {_shown(value)}")
    return json.dumps(value)


def _as_boolean(value: JsonValue) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise ValueError(f"expected true or false, found {_shown(value)}")


def _as_number(value: JsonValue, to: JsonType) -> int | float:
    if isinstance(value, bool):
        raise ValueError(f"expected a number, found {_shown(value)}")
    if isinstance(value, str):
        text = value.strip()
        if _INTEGER.fullmatch(text):
            return int(text)
        if to == "number" and _NUMBER.fullmatch(text):
            return float(text)
    elif isinstance(value, int):
        return value
    elif isinstance(value, float) and (to == "number" or value.is_integer()):
        return value if to == "number" else int(value)
    what = "a whole number" if to == "integer" else "a number"
    raise ValueError(f"expected {what}, found {_shown(value)}")


def _is_integer_text(option: JsonValue) -> TypeGuard[str]:
    return (
        isinstance(option, str)
        and _INTEGER.fullmatch(option) is not None
        and str(int(option)) == option
    )


def _shown(value: JsonValue) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
