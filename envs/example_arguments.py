"""Example arguments of a tool: what a policy is shown, and what the argument check accepts."""

from collections.abc import Iterator

from pydantic import JsonValue

from envs.argument_check import check_arguments
from envs.schema_repair import repaired
from envs.tools import JsonObject, ToolSpec

TEXT = "..."
"""Stands for a text of the policy's."""
_MAX_DEPTH = 8
_LARGEST = 1e15
"""Limits beyond it are not followed."""
_FORMATS = {
    "date": "2025-01-31",
    "time": "12:00:00Z",
    "date-time": "2025-01-31T12:00:00Z",
    "email": "a@example.com",
    "uri": "https://example.com",
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
}


def example_arguments(spec: ToolSpec) -> JsonObject | None:
    """Return the required arguments of a call that passes `check_arguments`: the schema's own
    examples, defaults and options where it has some, else the simplest values. None if none of the
    values that were tried passes.
    """
    schema = spec.parameters
    for given in _given(schema):
        if isinstance(given, dict) and check_arguments(spec, given) is None:
            return given
    found = _object(schema, repaired(schema), _MAX_DEPTH)
    return found if check_arguments(spec, found) is None else None


def _object(schema: JsonObject, root: JsonObject, depth: int) -> JsonObject:
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    required = schema.get("required")
    names = required if isinstance(required, list) else []
    return {
        name: _value(known.get(name, True), root, depth - 1)
        for name in names
        if isinstance(name, str)
    }


def _value(schema: JsonValue, root: JsonObject, depth: int) -> JsonValue:
    if not isinstance(schema, dict) or depth <= 0:
        return TEXT
    for given in _given(schema):
        probe = ToolSpec(name="", description="", parameters=_alone(schema, root))
        if check_arguments(probe, {"value": given}) is None:
            return given
    if (inner := _chosen(schema, root)) is not None:
        return _value(inner, root, depth - 1)
    match _kind(schema):
        case "object":
            return _object(schema, root, depth)
        case "array":
            return _items(schema, root, depth)
        case "integer" | "number" as kind:
            return _number(schema, whole=kind == "integer")
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return _text(schema)


def _given(schema: JsonObject) -> Iterator[JsonValue]:
    """Yield the values that the schema itself gives."""
    examples = schema.get("examples")
    if isinstance(examples, list):
        yield from examples
    elif isinstance(examples, dict):  # named ones, as OpenAPI has them
        yield from (each.get("value") for each in examples.values() if isinstance(each, dict))
    yield from (schema[key] for key in ("example", "const", "default") if key in schema)
    options = schema.get("enum")
    if isinstance(options, list):
        yield from options


def _alone(schema: JsonObject, root: JsonObject) -> JsonObject:
    """Return a schema of arguments whose `value` is checked against `schema`."""
    defined = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return {"properties": {"value": schema}, "required": ["value"], **defined}


def _chosen(schema: JsonObject, root: JsonObject) -> JsonValue:
    """Return the schema that this one refers to, or its first alternative; None if it has none."""
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _resolved(reference, root)
    for key in ("anyOf", "oneOf", "allOf"):
        options = schema.get(key)
        if isinstance(options, list) and options:
            real = [each for each in options if not _is_null(each)]
            return (real or options)[0]
    return None


def _resolved(reference: str, root: JsonObject) -> JsonValue:
    found: JsonValue = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _is_null(schema: JsonValue) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "null"


def _kind(schema: JsonObject) -> str:
    given = schema.get("type")
    names = given if isinstance(given, list) else [given]
    kinds = [name for name in names if isinstance(name, str) and name != "null"]
    if kinds:
        return kinds[0]
    if names == ["null"]:
        return "null"
    return "object" if "properties" in schema else "array" if "items" in schema else "string"


def _items(schema: JsonObject, root: JsonObject, depth: int) -> list[JsonValue]:
    first = schema.get("prefixItems")
    items = schema.get("items")
    fixed = first if isinstance(first, list) else items if isinstance(items, list) else []
    values = [_value(each, root, depth - 1) for each in fixed]
    least = schema.get("minItems")
    wanted = int(least) if isinstance(least, int | float) else 0
    while len(values) < min(max(wanted, 0 if fixed else 1), _MAX_DEPTH):
        values.append(_value(items, root, depth - 1))
    return values


def _number(schema: JsonObject, *, whole: bool) -> int | float:
    """Return 1, or a number near it that the limits allow."""
    step = _limit(schema, "multipleOf") or 1.0
    low = _limit(schema, "minimum")
    above = _limit(schema, "exclusiveMinimum")
    high = _limit(schema, "maximum")
    below = _limit(schema, "exclusiveMaximum")
    floor = max((each for each in (low, above) if each is not None), default=None)
    value = step if floor is None or floor < step else -(-floor // step) * step
    if above is not None and value <= above:
        value += step
    top = min((each for each in (high, below) if each is not None), default=None)
    if top is not None and (value > top or value == below):
        middle = top - step if floor is None else (floor + top) / 2
        value = float(int(middle)) if whole or int(middle) > (floor or top - 2) else middle
    return int(value) if whole or value == int(value) else value


def _limit(schema: JsonObject, key: str) -> float | None:
    value = schema.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > _LARGEST:
        return None
    return float(value)


def _text(schema: JsonObject) -> str:
    kind = schema.get("format")
    text = _FORMATS.get(kind, TEXT) if isinstance(kind, str) else TEXT
    least, most = _limit(schema, "minLength"), _limit(schema, "maxLength")
    if most is not None and len(text) > most:
        text = text[: int(most)]
    return text if least is None else text.ljust(min(int(least), 1_000), ".")
