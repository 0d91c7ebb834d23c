"""Arguments of an operation: its parameters, with their places in the request."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from envs.endpoints import UNSENT_HEADERS, WireArgument
from envs.errors import DataFileError
from envs.sources.openapi.document import OpenApiDocument
from envs.sources.openapi.merging import without_missing
from envs.sources.openapi.schemas import SchemaReader
from envs.tools import JsonObject

_STYLES = {
    "path": ("simple", "label", "matrix"),
    "query": ("form", "spaceDelimited", "pipeDelimited", "deepObject"),
    "header": ("simple",),
    "cookie": ("form",),
}
_IGNORED_HEADERS = frozenset({"accept", "content-type", "authorization"})
"""Header parameters of these names are ignored, as the OpenAPI specification requires."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@dataclass(slots=True)
class Arguments:
    """Collects the arguments of one operation."""

    reserved: frozenset[str] = frozenset()
    """Names of path parameters, which no other argument takes."""
    properties: JsonObject = field(default_factory=dict)
    required: list[JsonValue] = field(default_factory=list)
    wire: dict[str, WireArgument] = field(default_factory=dict)
    defaults: JsonObject = field(default_factory=dict)
    others: JsonValue = False
    """Schema of arguments that have no name here; False if there may be none."""

    def add(self, wire: WireArgument, schema: JsonObject, *, required: bool) -> None:
        """Add an argument. One that is required and has a default may be left out by the policy."""
        taken = self.properties.keys() | (frozenset() if wire.place == "path" else self.reserved)
        name, place = wire.name, "body" if wire.place == "field" else wire.place
        while name in taken:
            name = f"{name}_in_{place}"
        self.properties[name] = schema
        self.wire[name] = wire
        if required and "default" in schema:
            self.defaults[name] = schema["default"]
        elif required:
            self.required.append(name)

    def schema(self) -> JsonObject:
        """Return the JSON schema of all arguments."""
        whole: JsonObject = {
            "type": "object",
            "properties": self.properties,
            "required": self.required,
            "additionalProperties": self.others,
        }
        return without_missing(whole)


def parameters_of(
    document: OpenApiDocument, item: JsonObject, operation: JsonObject
) -> list[JsonObject]:
    """Return the parameters of the path and the operation; the operation's override the path's."""
    gathered: dict[tuple[str, str], JsonObject] = {}
    for owner in (item, operation):
        given = owner.get("parameters")
        for node in given if isinstance(given, list) else []:
            parameter = document.resolved(node)
            gathered[str(parameter.get("name")), str(parameter.get("in"))] = parameter
    return list(gathered.values())


def add_parameters(
    document: OpenApiDocument,
    arguments: Arguments,
    parameters: Sequence[JsonObject],
    reader: SchemaReader,
) -> None:
    """Add `parameters` to `arguments`, in their order. Raises DataFileError."""
    arguments.reserved = frozenset(
        str(parameter.get("name")) for parameter in parameters if parameter.get("in") == "path"
    )
    for parameter in parameters:
        _add(document, arguments, parameter, reader)


def _add(
    document: OpenApiDocument, arguments: Arguments, parameter: JsonObject, reader: SchemaReader
) -> None:
    name, place = parameter.get("name"), parameter.get("in")
    if not isinstance(name, str) or not name:
        raise DataFileError(f"expected a parameter with a name, found {str(parameter)[:80]}")
    if not isinstance(place, str) or place not in _STYLES:
        raise DataFileError(f"parameter {name!r}: expected a known `in`, found {place!r}")
    if place == "header" and name.lower() in _IGNORED_HEADERS | UNSENT_HEADERS:
        return
    if place in ("header", "cookie") and not _TOKEN.fullmatch(name):
        raise DataFileError(f"expected a name that a {place} can have, found {name!r}")
    node, media_type = _schema_and_type(document, parameter)
    schema = {**reader.fitted(node)}
    if isinstance(parameter.get("description"), str):
        schema["description"] = parameter["description"]
    if "examples" not in schema:
        schema |= reader.shown_example({**parameter, "type": schema.get("type")})
    style, explode = parameter.get("style") or "", parameter.get("explode")
    if style and style not in _STYLES[place]:
        raise DataFileError(
            f"parameter {name!r}: expected a style of a {place} parameter "
            f"({', '.join(_STYLES[place])}), found {style!r}"
        )
    wire = WireArgument.model_validate(
        {
            "place": place,
            "name": name,
            "style": style,
            "explode": explode if isinstance(explode, bool) else None,
            "allow_reserved": parameter.get("allowReserved") is True,
            "media_type": media_type,
        }
    )
    arguments.add(wire, schema, required=place == "path" or parameter.get("required") is True)


def _schema_and_type(document: OpenApiDocument, parameter: JsonObject) -> tuple[JsonValue, str]:
    """Return a parameter's schema, and the media type of its text if it has one."""
    if "schema" in parameter:
        return parameter["schema"], ""
    content = parameter.get("content")
    if isinstance(content, dict) and content:
        kind, node = next(iter(content.items()))
        return document.resolved(node).get("schema", {}), kind
    words = ("type", "items", "enum", "default", "format")
    return {key: parameter[key] for key in words if key in parameter}, ""
