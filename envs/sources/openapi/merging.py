"""Simplified schemas merged into one that is as narrow as all of them (`allOf`), or with null."""

from collections.abc import Sequence

from pydantic import JsonValue

from envs.tools import JsonObject


def merged(schemas: Sequence[JsonObject]) -> JsonObject:
    """Return one schema for what fits all of `schemas`; texts and defaults are of the last."""
    whole: JsonObject = {}
    for schema in schemas:
        whole = _both(whole, schema)
    return whole


def with_null(schema: JsonObject) -> JsonObject:
    """Return `schema`, or null."""
    changed = dict(schema)
    kinds = _listed(schema.get("type"))
    if kinds and "null" not in kinds:
        changed["type"] = [*kinds, "null"]
    options = schema.get("enum")
    if isinstance(options, list) and None not in options:
        changed["enum"] = [*options, None]
    choices = schema.get("anyOf")
    if isinstance(choices, list) and not any(
        isinstance(choice, dict) and choice.get("type") == "null" for choice in choices
    ):
        changed["anyOf"] = [*choices, {"type": "null"}]
    return changed


def without_missing(schema: JsonObject) -> JsonObject:
    """Return `schema` with no name in `required` that no property has, at every level."""
    changed: JsonObject = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties") and isinstance(value, dict):
            changed[key] = {
                name: without_missing(part) if isinstance(part, dict) else part
                for name, part in value.items()
            }
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            changed[key] = without_missing(value)
        elif key in ("anyOf", "allOf", "prefixItems") and isinstance(value, list):
            changed[key] = [
                without_missing(part) if isinstance(part, dict) else part for part in value
            ]
        else:
            changed[key] = value
    required, properties = schema.get("required"), schema.get("properties")
    if isinstance(required, list):
        known = properties if isinstance(properties, dict) else {}
        changed["required"] = [name for name in dict.fromkeys(map(str, required)) if name in known]
        if not isinstance(properties, dict):
            del changed["required"]
    elif isinstance(properties, dict):
        changed["required"] = []
    return changed


def _both(one: JsonObject, other: JsonObject) -> JsonObject:
    whole = {**one, **other}
    if not one or not other:
        return whole
    mine, theirs = one.get("properties"), other.get("properties")
    if isinstance(mine, dict) and isinstance(theirs, dict):
        whole["properties"] = {
            **mine,
            **{
                name: _both(earlier, part)
                if isinstance(earlier := mine.get(name), dict) and isinstance(part, dict)
                else part
                for name, part in theirs.items()
            },
        }
    if "required" in one and "required" in other:
        names = [*_listed(one["required"]), *_listed(other["required"])]
        whole["required"] = [*dict.fromkeys(map(str, names))]
    if "type" in one and "type" in other:
        whole["type"] = _common_type(_listed(one["type"]), _listed(other["type"]))
    if "enum" in one and "enum" in other:
        common = [value for value in _listed(one["enum"]) if value in _listed(other["enum"])]
        whole["enum"] = common or other["enum"]
    for key in ("items", "additionalProperties"):
        inner, outer = one.get(key), other.get(key)
        if isinstance(inner, dict) and isinstance(outer, dict):
            whole[key] = _both(inner, outer)
    if one.get("additionalProperties") is False and theirs:
        # A closed part would forbid the fields of the others: nobody means that.
        del whole["additionalProperties"]
    if "anyOf" in one and "anyOf" in other:
        whole["anyOf"] = one["anyOf"]
        whole["allOf"] = [*_listed(one.get("allOf")), {"anyOf": other["anyOf"]}]
    return whole


def _listed(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _common_type(one: list[JsonValue], other: list[JsonValue]) -> JsonValue:
    common = [kind for kind in one if kind in other]
    if "integer" in [*one, *other] and "number" in [*one, *other] and "integer" not in common:
        common.append("integer")
    kinds = common or other
    return kinds[0] if len(kinds) == 1 else kinds
