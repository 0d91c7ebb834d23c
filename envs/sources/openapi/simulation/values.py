"""Values of a JSON schema: checked, sampled or blank; part of a simulated API's source."""

import json
import random
import re
from typing import Any

WORDS = (
    *("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "iris", "jade"),
    *("kelp", "lotus", "maple", "nova", "opal", "pine", "quartz", "river", "sage", "tulip"),
)
_TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


def argument_fault(properties: dict, required: list, arguments: dict, others: Any) -> str:
    """Return what is wrong with the arguments; `others` is the schema of those without a name."""
    for name in required:
        if name not in arguments:
            return f"{name}: field required"
    for name, value in arguments.items():
        if name not in properties and others is False:
            return f"{name}: no such argument"
        schema = properties.get(name, others if isinstance(others, dict) else {})
        fault = _mismatch(schema, value, name)
        if fault:
            return fault
    return ""


def _mismatch(schema: dict, value: Any, name: str) -> str:
    given = schema.get("type", [])
    kinds = given if isinstance(given, list) else [given]
    known = [_TYPES[kind] for kind in kinds if kind in _TYPES]
    is_bool = isinstance(value, bool)
    if known and not any(
        isinstance(value, kind) and (not is_bool or kind is bool) for kind in known
    ):
        return f"{name}: expected {' or '.join(kinds)}"
    options = schema.get("enum")
    if options and value not in options:
        return f"{name}: expected one of {', '.join(map(str, options))}"
    if isinstance(value, (int, float)) and not is_bool:
        if value < schema.get("minimum", value):
            return f"{name}: expected at least {schema['minimum']}"
        if value > schema.get("maximum", value):
            return f"{name}: expected at most {schema['maximum']}"
    if isinstance(value, dict) and schema.get("properties"):
        inner = {key: item for key, item in value.items() if key in schema["properties"]}
        return argument_fault(schema["properties"], schema.get("required", []), inner, True)
    if isinstance(value, list):
        items = schema.get("items", {})
        faults = (_mismatch(items, item, f"{name}[{i}]") for i, item in enumerate(value))
        return next((fault for fault in faults if fault), "")
    return ""


def drawn_value(schema: dict, rng: random.Random, name: str, depth: int) -> Any:
    """Sample a value that the schema allows."""
    if "default" in schema and depth < 5:
        return copied(schema["default"])
    if schema.get("enum"):
        return rng.choice(schema["enum"])
    if schema.get("anyOf"):
        return drawn_value(schema["anyOf"][0], rng, name, depth)
    given = schema.get("type", "object" if schema.get("properties") else "string")
    real = [one for one in given if one != "null"] if isinstance(given, list) else [given]
    kind = real[0] if real else "null"
    if kind == "object":
        pairs = schema.get("properties", {}).items() if depth > 0 else ()
        others = schema.get("additionalProperties")
        if not pairs and isinstance(others, dict) and depth > 0:
            pairs = ((word, others) for word in rng.sample(WORDS, 2))
        return {key: drawn_value(below, rng, key, depth - 1) for key, below in pairs}
    if kind == "array":
        count = rng.randint(1, 3) if depth > 0 else 0
        return [drawn_value(schema.get("items", {}), rng, name, depth - 1) for _ in range(count)]
    if kind in ("integer", "number"):
        low = schema.get("minimum", 1)
        high = max(schema.get("maximum", low + 999), low)
        return (
            rng.randint(int(low), int(high))
            if kind == "integer"
            else round(rng.uniform(low, high), 2)
        )
    if kind in ("boolean", "null"):
        return rng.random() < 0.5 if kind == "boolean" else None
    return _text(schema.get("format", ""), rng, name)


def _text(style: str, rng: random.Random, name: str) -> str:
    day = f"20{rng.randint(10, 25)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    word = rng.choice(WORDS)
    if style == "uuid":
        text = f"{rng.getrandbits(128):032x}"
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
    styles = {
        "date": day,
        "date-time": f"{day}T{rng.randint(0, 23):02d}:00:00Z",
        "email": f"{word}@example.com",
        "uri": f"https://example.com/{word}",
    }
    return styles.get(style, f"{word} {re.sub(r'[^a-z]+', ' ', name.lower()).strip()}".strip())


def blank_value(schema: dict) -> Any:
    """Return the value of a field that was never set."""
    if "default" in schema:
        return copied(schema["default"])
    if schema.get("enum"):
        return schema["enum"][0]
    given = schema.get("type", "null")
    if isinstance(given, list):
        return None if "null" in given else blank_value({**schema, "type": given[0]})
    return {
        "string": "",
        "integer": 0,
        "number": 0,
        "boolean": False,
        "array": [],
        "object": {},
    }.get(given)


def is_number(schema: dict) -> bool:
    return schema.get("type") in ("integer", "number")


def copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, apart from case and from being a number or its text."""
    return str(one).lower() == str(other).lower()


def whole_numbers(schema: dict, value: Any) -> Any:
    """Return `value` with `3.0` as `3` where the schema expects an integer."""
    if isinstance(value, float):
        given = schema.get("type", [])
        kinds = given if isinstance(given, list) else [given]
        is_whole = value.is_integer() and "integer" in kinds and "number" not in kinds
        return int(value) if is_whole else value
    if isinstance(value, list):
        return [whole_numbers(schema.get("items", {}), item) for item in value]
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return {name: whole_numbers(known.get(name, {}), item) for name, item in value.items()}
    return value
