"""Whole numbers that a model wrote with a decimal point, where a schema expects an integer."""

from pydantic import JsonValue

_MAX_DEPTH = 32


def as_integers(schema: JsonValue, value: JsonValue, depth: int = _MAX_DEPTH) -> JsonValue:
    """Return `value` with `3.0` as `3` wherever `schema` expects an integer and no other number.

    The check of arguments accepts `3.0` for an integer, as JSON Schema does; a path of an API and
    a function may not.
    """
    if not isinstance(schema, dict) or depth == 0:
        return value
    if isinstance(value, float):
        whole = value.is_integer() and _is_integer(schema)
        return int(value) if whole else value
    if isinstance(value, list):
        items = schema.get("items")
        return [as_integers(items, item, depth - 1) for item in value]
    if isinstance(value, dict):
        properties, others = schema.get("properties"), schema.get("additionalProperties")
        known = properties if isinstance(properties, dict) else {}
        return {
            name: as_integers(known.get(name, others), item, depth - 1)
            for name, item in value.items()
        }
    return value


def _is_integer(schema: JsonValue) -> bool:
    if not isinstance(schema, dict):
        return False
    given = schema.get("type")
    kinds = given if isinstance(given, list) else [given]
    choices = schema.get("anyOf")
    if given is None and isinstance(choices, list):
        return any(map(_is_integer, choices)) and not any(
            isinstance(choice, dict) and choice.get("type") == "number" for choice in choices
        )
    return "integer" in kinds and "number" not in kinds
