"""The response of a successful call: its status, schema and example, and what it is about."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from envs.sources.openapi.bodies import is_json, media_type_rank
from envs.sources.openapi.document import OpenApiDocument
from envs.sources.openapi.schemas import SchemaReader
from envs.tools import JsonObject

_EXAMPLE_ITEMS = 3
_DEFAULT_ACCEPT = "application/json"


@dataclass(frozen=True, slots=True)
class Shape:
    """Names of the schema of a value, and of the items of the list that it is or holds.

    Two values of one name are about the same kind of thing. Empty where there is nothing to name.
    """

    single: str = ""
    items: str = ""


@dataclass(frozen=True, slots=True)
class ApiAnswer:
    """Response of a successful call; `example` is None if the document has none."""

    status: int
    schema: JsonObject
    example: JsonValue
    shape: Shape
    accept: str


def answer_of(document: OpenApiDocument, operation: JsonObject, reader: SchemaReader) -> ApiAnswer:
    """Return the response of an operation. Raises DataFileError."""
    responses = operation.get("responses")
    given = responses if isinstance(responses, dict) else {}
    good = sorted(str(status) for status in given if str(status).startswith("2"))
    status = good[0] if good else "default" if "default" in given else ""
    number = int(status) if status.isdecimal() and len(status) == 3 else 200
    response = document.resolved(given[status]) if status else {}
    content = response.get("content")
    forms = content if isinstance(content, dict) else {}
    kinds = [kind for kind in sorted(forms, key=media_type_rank) if is_json(kind)]
    form = document.resolved(forms[kinds[0]]) if kinds else {}
    node = form.get("schema", {})
    schema = reader.fitted(node)
    example = reader.value(_example(document, form, node), _EXAMPLE_ITEMS)
    return ApiAnswer(number, schema, example, shape_of(document, node, reader), _accept(forms))


def no_answer(operation: JsonObject) -> ApiAnswer:
    """Return the response of an operation whose document does not say what it is."""
    del operation
    return ApiAnswer(200, {}, None, Shape(), _DEFAULT_ACCEPT)


def shape_of(document: OpenApiDocument, node: JsonValue, reader: SchemaReader) -> Shape:
    """Return what a value of the schema `node` is about. Raises DataFileError."""
    if not isinstance(node, dict):
        return Shape()
    schema = document.resolved(node)
    if schema.get("type") == "array" or "items" in schema:
        return Shape(items=_name(schema.get("items"), reader))
    properties = schema.get("properties")
    for part in properties.values() if isinstance(properties, dict) else ():
        below = document.resolved(part) if isinstance(part, dict) else {}
        if below.get("type") == "array":
            return Shape(_name(node, reader), _name(below.get("items"), reader))
    return Shape(single=_name(node, reader))


def _name(node: JsonValue, reader: SchemaReader) -> str:
    if not isinstance(node, dict):
        return ""
    if isinstance(node.get("$ref"), str):
        return str(node["$ref"])
    plain = reader.fitted(node)
    if not plain.get("properties"):
        return ""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def _example(document: OpenApiDocument, form: JsonObject, node: JsonValue) -> JsonValue:
    if form.get("example") is not None:
        return form["example"]
    examples = form.get("examples")
    if isinstance(examples, dict) and examples:
        first = document.resolved(next(iter(examples.values())))
        if first.get("value") is not None:
            return first["value"]
    schema = document.resolved(node) if isinstance(node, dict) else {}
    listed = schema.get("examples")
    if schema.get("example") is None and isinstance(listed, list) and listed:
        return listed[0]
    return schema.get("example")


def _accept(forms: Mapping[str, JsonValue]) -> str:
    """Return the media types of the response, JSON first; other types than JSON as a last choice.

    A server that has only an error to tell may answer in another type than the document says.
    """
    kinds = [kind for kind in sorted(forms, key=media_type_rank) if kind.isascii()]
    kinds = [kind.strip() for kind in kinds if kind.isprintable() and "/" in kind]
    json_kinds = [kind for kind in kinds if is_json(kind) and "*" not in kind]
    if not kinds or _DEFAULT_ACCEPT in json_kinds:
        return _DEFAULT_ACCEPT
    return ", ".join([*(json_kinds[:1] or kinds[:4]), "*/*;q=0.1"])
