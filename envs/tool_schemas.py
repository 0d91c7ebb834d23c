"""Schemas as a policy reads them: without what generators add, and a person would not write."""

import re

from pydantic import JsonValue

from envs.tools import JsonObject

_MAX_DEPTH = 64
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose values map names to schemas."""
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAY_BE_NULL = frozenset({"default", "const", "example"})
_SCHEMAS = (
    "items",
    "additionalProperties",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "propertyNames",
    "unevaluatedProperties",
    "unevaluatedItems",
)


def without_noise(schema: JsonObject, name: str) -> JsonObject:
    """Return the schema of a tool's arguments without `$schema`, without keywords whose value is
    null, and without titles that only repeat the name of what they stand at.

    `name` is the tool's. Data in it (defaults, examples, options) is left as it is.
    """
    cleaned = _cleaned(schema, (name, f"{name}Arguments", f"{name}Input"), _MAX_DEPTH)
    assert isinstance(cleaned, dict), "an object stays one"
    cleaned.pop("$schema", None)
    return cleaned if "type" in cleaned else {"type": "object", **cleaned}


def _cleaned(schema: JsonValue, names: tuple[str, ...], depth: int) -> JsonValue:
    if not isinstance(schema, dict) or depth == 0:
        return schema
    cleaned = {
        key: value for key, value in schema.items() if value is not None or key in _MAY_BE_NULL
    }
    title = cleaned.get("title")
    if isinstance(title, str) and _plain(title) in {_plain(name) for name in names}:
        del cleaned["title"]
    for key in _MAPS:
        if isinstance(inner := cleaned.get(key), dict):
            cleaned[key] = {each: _cleaned(inner[each], (each,), depth - 1) for each in inner}
    for key in _LISTS:
        if isinstance(inner := cleaned.get(key), list):
            cleaned[key] = [_cleaned(each, names, depth - 1) for each in inner]
    for key in _SCHEMAS:
        if isinstance(inner := cleaned.get(key), dict):
            cleaned[key] = _cleaned(inner, names, depth - 1)
    return cleaned


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
