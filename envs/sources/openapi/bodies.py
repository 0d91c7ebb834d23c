"""The body of an operation's request: which of its media types is sent, and from which arguments.

JSON is preferred, then forms, then text. A policy writes text only, so a body that has to hold a
file cannot be sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from envs.endpoints import HttpBody, WireArgument
from envs.errors import DataFileError
from envs.sources.openapi.arguments import Arguments
from envs.sources.openapi.document import OpenApiDocument
from envs.sources.openapi.schemas import SchemaReader
from envs.tools import JsonObject

_URLENCODED = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
_STYLES = ("form", "spaceDelimited", "pipeDelimited", "deepObject")


@dataclass(frozen=True, slots=True)
class _Content:
    """One media type of a body."""

    media_type: str
    schema: JsonValue
    encoding: JsonObject


def is_json(kind: str) -> bool:
    """Whether a media type is JSON, or a pattern that JSON fits."""
    bare = kind.partition(";")[0].strip().lower()
    known = ("application/json", "text/json", "application/x-json", "*/*", "application/*")
    return bare in known or bare.endswith("+json")


def media_type_rank(kind: str) -> int:
    """Return how much a media type is preferred; lower is better."""
    bare = kind.partition(";")[0].strip().lower()
    if bare == "application/json":
        return 0
    if is_json(bare):
        return 1 if "*" not in bare else 5
    return {_URLENCODED: 2, _MULTIPART: 3}.get(bare, 4)


def add_body(
    document: OpenApiDocument, arguments: Arguments, body: JsonObject, reader: SchemaReader
) -> HttpBody:
    """Add the arguments of a body, and return how it is written. Raises DataFileError."""
    content = body.get("content")
    forms = content if isinstance(content, dict) else {}
    needed = body.get("required") is True
    reasons: list[str] = []
    for kind in sorted(forms, key=media_type_rank):
        node = document.resolved(forms[kind])
        encoding = node.get("encoding")
        found = _Content(kind, node.get("schema"), encoding if isinstance(encoding, dict) else {})
        try:
            return _add(arguments, found, reader, needed=needed)
        except _NotWritten as reason:
            reasons.append(str(reason))
    raise DataFileError("; ".join(reasons) or "expected a body with a media type, found none")


class _NotWritten(Exception):
    """A media type that cannot be sent, and why."""


def _add(arguments: Arguments, found: _Content, reader: SchemaReader, *, needed: bool) -> HttpBody:
    kind = found.media_type
    bare = kind.partition(";")[0].strip().lower()
    if not kind.isascii() or not kind.isprintable():
        raise _NotWritten(f"expected a media type, found {kind!r}")
    if is_json(kind):
        schema = reader.fitted(found.schema if found.schema is not None else {})
        _add_fields(arguments, schema, {}, needed=needed)
        return HttpBody(media_type="application/json" if "*" in kind else kind, required=needed)
    if bare in (_URLENCODED, _MULTIPART):
        schema = _without_files(reader.fitted(found.schema or {"type": "object"}), found)
        _add_fields(arguments, schema, _field_styles(found), needed=needed)
        form = "urlencoded" if bare == _URLENCODED else "multipart"
        return HttpBody(media_type=bare, form=form, required=needed)
    schema = reader.fitted(found.schema if found.schema is not None else {"type": "string"})
    if schema.get("type") == "string" and not _is_file(schema):
        writable = bare.startswith("text/") or bare.endswith(("xml", "yaml", "graphql"))
        if writable:
            wire = WireArgument(place="body", name="body")
            arguments.add(wire, schema, required=needed)
            return HttpBody(media_type=kind, form="text", required=needed)
    raise _NotWritten(f"expected a body of JSON, a form or text, found {kind}")


def _add_fields(
    arguments: Arguments, schema: JsonObject, styles: Mapping[str, JsonObject], *, needed: bool
) -> None:
    """Add a field of the body per property; or the whole body, where its fields are not known."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not properties or _has_choices(schema):
        if styles and schema.get("type", "object") != "object":
            raise _NotWritten(f"expected a form of fields, found {schema.get('type')}")
        arguments.add(WireArgument(place="body", name="body"), schema, required=needed)
        return
    names = required if isinstance(required, list) else []
    for name, below in properties.items():
        assert isinstance(below, dict), "simplified schemas are objects"
        wire = WireArgument.model_validate({"place": "field", "name": name, **styles.get(name, {})})
        arguments.add(wire, below, required=needed and name in names)
    arguments.others = schema.get("additionalProperties", False)


def _has_choices(schema: JsonObject) -> bool:
    """Whether a choice between schemas has fields that the schema itself lacks."""
    choices = schema.get("anyOf")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and set(choice) - {"required", "description"} for choice in choices
    )


def _without_files(schema: JsonObject, found: _Content) -> JsonObject:
    """Return a form without its fields for files. Raises _NotWritten if it needs one."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not properties:
        return {"type": "object", **schema}
    names = required if isinstance(required, list) else []
    kept: JsonObject = {}
    for name, below in properties.items():
        assert isinstance(below, dict), "simplified schemas are objects"
        encoding = found.encoding.get(name)
        kind = encoding.get("contentType", "") if isinstance(encoding, dict) else ""
        if not (_is_file(below) or _is_binary(str(kind))):
            kept[name] = below
        elif name in names:
            raise _NotWritten(f"expected a form without files, found the file {name!r}")
    if not kept:
        raise _NotWritten(f"expected a form without files, found {', '.join(properties)}")
    return {**schema, "properties": kept}


def _is_file(schema: JsonObject) -> bool:
    items = schema.get("items")
    if isinstance(items, dict) and _is_file(items):
        return True
    coded = "contentEncoding" in schema or schema.get("format") == "byte"
    kind = "" if coded else str(schema.get("contentMediaType", ""))
    return schema.get("format") == "binary" or _is_binary(kind)


def _is_binary(kind: str) -> bool:
    first = kind.partition(",")[0].strip().lower()
    return first.startswith(("image/", "audio/", "video/")) or first in (
        "application/octet-stream",
        "application/pdf",
        "application/zip",
    )


def _field_styles(found: _Content) -> dict[str, JsonObject]:
    """Return how each field of a form is written, where the document says so.

    Styles apply to `application/x-www-form-urlencoded` alone; they win over a media type.
    """
    styles: dict[str, JsonObject] = {"": {}}
    for name, node in found.encoding.items():
        if not isinstance(node, dict):
            continue
        style, explode = node.get("style"), node.get("explode")
        styled = {"style", "explode", "allowReserved"} & set(node)
        if found.media_type.lower().startswith(_URLENCODED) and styled:
            styles[name] = {
                "style": style if style in _STYLES else "form",
                "explode": explode if isinstance(explode, bool) else None,
                "allow_reserved": node.get("allowReserved") is True,
            }
        elif isinstance(node.get("contentType"), str):
            styles[name] = {"media_type": str(node["contentType"]).partition(",")[0].strip()}
    return styles
