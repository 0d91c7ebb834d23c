"""Schemas that a validator can take: careless ones, without the keywords that mean nothing.

Older spellings are read as draft 2020-12: `nullable`, a boolean `exclusiveMinimum`, a list of
`items`, `definitions`.
"""

from collections.abc import Callable, Mapping

from pydantic import JsonValue

from envs.tools import JsonObject

_MAX_DEPTH = 48
_TYPES = frozenset({"string", "integer", "number", "boolean", "object", "array", "null"})
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_OF_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_OF_ONE = (
    "items",
    "additionalProperties",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "propertyNames",
)


def _is_count(value: JsonValue) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_NUMBERS: Mapping[str, Callable[[JsonValue], bool]] = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _is_count),
    **dict.fromkeys(("minProperties", "maxProperties", "minContains", "maxContains"), _is_count),
    "multipleOf": lambda value: _is_number(value) and isinstance(value, int | float) and value > 0,
}
_FITS: Mapping[str, Callable[[JsonValue], bool]] = {
    **_NUMBERS,
    "enum": lambda value: isinstance(value, list),
    "const": lambda value: True,
    "$ref": lambda value: isinstance(value, str) and (value == "#" or value.startswith("#/")),
    "pattern": lambda value: isinstance(value, str),
    "uniqueItems": lambda value: isinstance(value, bool),
}


def repaired(schema: JsonValue) -> JsonObject:
    """Return a schema of draft 2020-12 that says what `schema` says, where it means anything."""
    found = _repaired(schema, _MAX_DEPTH)
    return found if isinstance(found, dict) else {}


def _repaired(schema: JsonValue, depth: int) -> JsonValue:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict) or depth == 0:
        return {}
    kept: JsonObject = {
        key: value for key, value in schema.items() if key in _FITS and _FITS[key](value)
    }
    kept |= _types(schema)
    kept |= _limits(schema)
    if names := _texts(schema.get("required")):
        kept["required"] = [*names]
    dependent = schema.get("dependentRequired")
    if isinstance(dependent, dict):
        kept["dependentRequired"] = {name: [*_texts(dependent[name])] for name in dependent}
    kept |= _inner(schema, depth)
    if schema.get("nullable") is True and kept:
        return {"anyOf": [{"type": ["null"]}, kept]}
    return kept


def _inner(schema: JsonObject, depth: int) -> JsonObject:
    """Return the keywords whose values are schemas."""
    kept: JsonObject = {}
    for key in _OF_NAMES:
        if isinstance(value := schema.get(key), dict):
            kept[key] = {name: _repaired(value[name], depth - 1) for name in value}
    for key in _OF_LISTS:
        value = schema.get(key)
        if isinstance(value, list) and value:
            kept[key] = [_repaired(each, depth - 1) for each in value]
    for key in _OF_ONE:
        value = schema.get(key)
        if isinstance(value, dict | bool):
            kept[key] = _repaired(value, depth - 1)
    if isinstance(items := schema.get("items"), list) and items:
        kept["prefixItems"] = [_repaired(each, depth - 1) for each in items]
    return kept


def _types(schema: JsonObject) -> JsonObject:
    """Return the type; nothing if one is unknown, because then anything is allowed."""
    given = schema.get("type")
    names = given if isinstance(given, list) else [given]
    known = [name for name in names if isinstance(name, str) and name in _TYPES]
    return {"type": [*dict.fromkeys(known)]} if known and len(known) == len(names) else {}


def _limits(schema: JsonObject) -> JsonObject:
    """Return the exclusive limits of the drafts in which they are boolean."""
    limits: JsonObject = {}
    for plain, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if schema.get(exclusive) is True and _is_number(schema.get(plain)):
            limits[exclusive] = schema[plain]
    return limits


def _texts(value: JsonValue) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
