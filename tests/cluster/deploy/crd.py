"""A strict check of objects against Kubernetes' custom resource definitions (structural schemas).

Stricter than the API server in one point: a field that the schema does not have is a fault here,
where the server would drop it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def schema_of(folder: Path, kind: str, version: str) -> dict[str, Any]:
    """Return the schema of `kind` in `version` from the definitions in `folder`."""
    for path in sorted(folder.glob("*.yaml")):
        for definition in yaml.safe_load_all(path.read_text()):
            if definition and definition["spec"]["names"]["kind"] == kind:
                for found in definition["spec"]["versions"]:
                    if found["name"] == version:
                        return found["schema"]["openAPIV3Schema"]
    raise LookupError(f"no definition of {kind} {version} in {folder}")


def faults(value: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """Yield what is wrong with `value`, each with its path."""
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{where}: expected a number or text, found {value!r}"
        elif isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
            yield f"{where}: {value!r} does not match {schema['pattern']}"
        return
    kind = schema.get("type")
    if kind and (
        not isinstance(value, _TYPES[kind])
        or (isinstance(value, bool) and kind in ("integer", "number"))
    ):
        yield f"{where}: expected {kind}, found {value!r}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: expected one of {schema['enum']}, found {value!r}"
    if isinstance(value, str):
        if not re.search(schema.get("pattern", ""), value):
            yield f"{where}: {value!r} does not match {schema['pattern']}"
        if len(value) > schema.get("maxLength", len(value)):
            yield f"{where}: longer than {schema['maxLength']}"
    elif isinstance(value, int | float):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            yield f"{where}: {value} is out of range"
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from faults(item, schema.get("items", {}), f"{where}[{place}]")
    elif isinstance(value, dict):
        yield from _object_faults(value, schema, where)


def _object_faults(value: dict[str, Any], schema: dict[str, Any], where: str) -> Iterator[str]:
    known = schema.get("properties", {})
    others = schema.get("additionalProperties")
    for name in schema.get("required", []):
        if name not in value:
            yield f"{where}: {name} is missing"
    for name, item in value.items():
        if name in known:
            yield from faults(item, known[name], f"{where}.{name}")
        elif isinstance(others, dict):
            yield from faults(item, others, f"{where}.{name}")
        # A schema that says nothing of an object's fields leaves them to another one (metadata).
        elif known and not others and not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{where}.{name}: no such field"
