"""Checks the arguments of a call against its tool's JSON schema, as far as the schema is valid.

Datasets contain careless schemas: unknown keywords and types are ignored, and keys that a schema
does not mention are allowed unless `additionalProperties` is exactly false.
"""

import json

from pydantic import JsonValue

from envs.tools import JsonObject, ToolSpec

_MAX_DEPTH = 32
_MAX_SHOWN = 80


def check_arguments(spec: ToolSpec, arguments: JsonObject) -> str | None:
    """Return a message for the policy about the first error in `arguments`, or None."""
    return _object_fault(spec.parameters, arguments, "", _MAX_DEPTH)


def _fault(schema: JsonValue, value: JsonValue, path: str, depth: int) -> str | None:
    if not isinstance(schema, dict) or depth == 0:
        return None
    names = _type_names(schema)
    if value is None and schema.get("nullable") is True:
        return None
    if names and not any(_has_type(name, value) for name in names):
        return f"argument {path!r}: expected {' or '.join(names)}, found {_shown(value)}"
    allowed = schema.get("enum")
    if isinstance(allowed, list) and not any(_same(value, option) for option in allowed):
        options = ", ".join(json.dumps(option, ensure_ascii=False) for option in allowed)
        return f"argument {path!r}: expected one of {options}, found {_shown(value)}"
    if isinstance(value, dict):
        fault = _object_fault(schema, value, path, depth)
        return fault or _choice_fault(schema, value, path, depth)
    if isinstance(value, list):
        return _list_fault(schema, value, path, depth)
    return _choice_fault(schema, value, path, depth)


def _choice_fault(schema: JsonObject, value: JsonValue, path: str, depth: int) -> str | None:
    """Return what is wrong with a value that fits none of the schemas in `anyOf`."""
    choices = schema.get("anyOf")
    if not isinstance(choices, list) or not choices:
        return None
    faults = [_fault(choice, value, path, depth - 1) for choice in choices]
    return faults[0] if all(faults) else None


def _list_fault(schema: JsonObject, value: list[JsonValue], path: str, depth: int) -> str | None:
    least, most = schema.get("minItems"), schema.get("maxItems")
    for bound, words in ((least, "at least"), (most, "at most")):
        wrong = isinstance(bound, int) and (
            len(value) < bound if words == "at least" else len(value) > bound
        )
        if wrong:
            return f"argument {path!r}: expected {words} {bound} items, found {len(value)}"
    first = schema.get("prefixItems")
    own = first if isinstance(first, list) else []
    rest = schema.get("items")
    for index, item in enumerate(value):
        inner = own[index] if index < len(own) else rest
        if fault := _fault(inner, item, f"{path}[{index}]", depth - 1):
            return fault
    return _choice_fault(schema, value, path, depth)


def _object_fault(schema: JsonObject, value: JsonObject, path: str, depth: int) -> str | None:
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    required = schema.get("required")
    for name in required if isinstance(required, list) else []:
        if isinstance(name, str) and name not in value:
            return f"missing required argument {_join(path, name)!r}"
    if schema.get("additionalProperties") is False:
        for name in value:
            if name not in known:
                return (
                    f"unknown argument {_join(path, name)!r}; known: {', '.join(known) or 'none'}"
                )
    others = schema.get("additionalProperties")
    for name, item in value.items():
        inner = known.get(name, others)
        if fault := _fault(inner, item, _join(path, name), depth - 1):
            return fault
    return None


def _type_names(schema: JsonObject) -> list[str]:
    """Return the schema's types; none if one is unknown, because then anything is allowed."""
    given = schema.get("type")
    names = given if isinstance(given, list) else [given]
    known = {"string", "integer", "number", "boolean", "object", "array", "null"}
    texts = [name for name in names if isinstance(name, str) and name in known]
    return texts if len(texts) == len(names) else []


def _has_type(name: str, value: JsonValue) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if name == "number":
        return isinstance(value, int | float)
    if name == "null":
        return value is None
    return isinstance(value, {"string": str, "object": dict, "array": list}.get(name, ()))


def _same(value: JsonValue, option: JsonValue) -> bool:
    return value == option and isinstance(value, bool) == isinstance(option, bool)


def _shown(value: JsonValue) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
