"""Writes `static/core/types.d.ts`: the API's answers as types, from its own models.

`python -m tests.dashboard_ui.api_types` writes the file anew; a test compares it.
"""

from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from cluster.dashboard.models import analysis, detail, episodes, runs, shared
from cluster.dashboard.models.shared import Answer

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "cluster" / "dashboard" / "static" / "core" / "types.d.ts"
HEAD = (
    "// The answers of the API. Written by `python -m tests.dashboard_ui.api_types`: do not edit.\n"
)


def written() -> str:
    """Return the text of the file."""
    models = [
        model
        for module in (shared, runs, episodes, detail, analysis)
        for model in vars(module).values()
        if isinstance(model, type) and issubclass(model, Answer) and model is not Answer
    ]
    unique = list(dict.fromkeys(models))
    _, schema = models_json_schema([(model, "serialization") for model in unique])
    definitions = schema["$defs"]
    blocks = [_interface(name, definitions[name]) for name in sorted(definitions)]
    return HEAD + "\n" + "\n".join(blocks)


def _interface(name: str, schema: dict[str, Any]) -> str:
    fields = [f"  {key}: {_type(field)};\n" for key, field in schema["properties"].items()]
    return f"export interface {name} {{\n{''.join(fields)}}}\n"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"'{one}'" for one in schema["enum"])
    if "const" in schema:
        return f"'{schema['const']}'"
    match schema.get("type"):
        case "array":
            inner = _type(schema["items"])
            return f"({inner})[]" if "|" in inner else f"{inner}[]"
        case "object":
            extra = schema.get("additionalProperties")
            return f"Record<string, {_type(extra) if isinstance(extra, dict) else 'unknown'}>"
        case "integer" | "number":
            return "number"
        case "string" | "boolean" | "null" as plain:
            return plain
    return "unknown"


if __name__ == "__main__":
    FILE.write_text(written())
