"""OpenAPI 3.0 and 3.1 documents: parsing, resolving references, simplifying schemas.

The user chooses the document but often did not write it, so it is not trusted: references stay
inside the document, cycles end, and a budget bounds what can grow without limit (aliases of YAML,
references to references).
"""

import json
from collections.abc import Mapping

import yaml
from pydantic import JsonValue

from envs.errors import DataFileError
from envs.tools import JsonObject

_COPIED = (
    *("default", "description", "format", "pattern", "minimum", "maximum"),
    *("minLength", "maxLength", "minItems", "maxItems"),
)
"""Keywords that are copied unchanged."""
_MAX_NODES = 50_000
_MAX_REFERENCES = 32


class _PlainLoader(yaml.SafeLoader):
    """Loads YAML with JSON's types only: dates stay text, and keys are text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if str(tag).rpartition(":")[2] not in ("binary", "omap", "pairs", "set", "timestamp")
}


class OpenApiDocument:
    """A parsed document, which resolves references and simplifies schemas; see `parse_document`."""

    def __init__(self, root: JsonObject) -> None:
        self._root = root
        self._nodes = _MAX_NODES

    @property
    def root(self) -> JsonObject:
        return self._root

    def resolved(self, node: JsonValue) -> JsonObject:
        """Return `node`, or the target of its `$ref`. Raises DataFileError."""
        for _ in range(_MAX_REFERENCES):
            if not isinstance(node, dict):
                raise DataFileError(f"expected an object, found a {type(node).__name__}")
            reference = node.get("$ref")
            if not isinstance(reference, str):
                return node
            node = self._target(reference)
        raise DataFileError("expected references that lead to an object, found a circle")

    def plain(self, node: JsonValue, depth: int) -> JsonObject:
        """Return a schema without references, at most `depth` levels deep; below, any value.

        `allOf` is merged and `oneOf` becomes `anyOf`, so that the rest of the project has to know
        fewer keywords. The depth ends schemas that contain themselves. Raises DataFileError.
        """
        if isinstance(node, bool) or depth <= 0:
            return {}
        self._spend(1)
        schema = self.resolved(node)
        parts = schema.get("allOf")
        if isinstance(parts, list):
            rest = {key: value for key, value in schema.items() if key != "allOf"}
            return _merged([self.plain(part, depth - 1) for part in [*parts, rest]])
        plain: JsonObject = {key: schema[key] for key in _COPIED if key in schema}
        plain |= _types_and_options(schema)
        for key in ("anyOf", "oneOf"):
            options = schema.get(key)
            if isinstance(options, list):
                plain["anyOf"] = [self.plain(option, depth - 1) for option in options]
        for key in ("items", "additionalProperties"):
            below = schema.get(key)
            if isinstance(below, dict):
                plain[key] = self.plain(below, depth - 1)
            elif below is False:
                plain[key] = below
        properties = schema.get("properties")
        if isinstance(properties, dict):
            plain.setdefault("type", "object")
            plain["properties"] = {
                name: {**self.plain(below, depth - 1), **_access(below)}
                for name, below in properties.items()
            }
            required = schema.get("required")
            names = required if isinstance(required, list) else []
            plain["required"] = [name for name in properties if name in names]
        return plain

    def trimmed(self, value: JsonValue, items: int, depth: int = 8) -> JsonValue:
        """Return an example with at most `items` entries per list and `depth` levels."""
        self._spend(1)
        if isinstance(value, list):
            return [self.trimmed(item, items, depth - 1) for item in value[:items] if depth > 0]
        if isinstance(value, dict):
            pairs = value.items() if depth > 0 else ()
            return {str(key): self.trimmed(item, items, depth - 1) for key, item in pairs}
        return value if isinstance(value, int | float | str | None) else str(value)

    def _spend(self, nodes: int) -> None:
        self._nodes -= nodes
        if self._nodes < 0:
            raise DataFileError(
                f"expected at most {_MAX_NODES} nodes once references are resolved, found more: "
                "select fewer operations"
            )

    def _target(self, reference: str) -> JsonValue:
        if not reference.startswith("#/"):
            raise DataFileError(
                f"expected references inside the document, found {reference!r}: bundle the "
                "document into one file"
            )
        node: JsonValue = self._root
        for part in reference[2:].split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, dict) or key not in node:
                raise DataFileError(f"reference {reference!r} has no target: correct it")
            node = node[key]
        return node


def parse_document(text: str) -> OpenApiDocument:
    """Parse JSON or YAML text. Raises DataFileError, with the line where it is known."""
    try:
        root = json.loads(text) if text.lstrip()[:1] == "{" else yaml.load(text, _PlainLoader)
    except json.JSONDecodeError as error:
        raise DataFileError(f"line {error.lineno}: invalid JSON ({error.msg})") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise DataFileError(f"line {line}: invalid YAML ({error.problem})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataFileError(f"expected an OpenAPI document in JSON or YAML: {error}") from error
    if not isinstance(root, dict):
        raise DataFileError("expected an OpenAPI document, found no object at the top level")
    version = root.get("openapi")
    if not str(version).startswith(("3.0", "3.1")):
        raise DataFileError(
            f"expected OpenAPI 3.0 or 3.1, found {version or root.get('swagger') or 'no version'}: "
            "convert the document to one of these versions"
        )
    if not isinstance(root.get("paths"), dict) or not root["paths"]:
        raise DataFileError("expected `paths` with at least one operation, found none")
    return OpenApiDocument(root)


def _types_and_options(schema: Mapping[str, JsonValue]) -> JsonObject:
    """Return `type` and `enum`, which include `nullable` of 3.0 and `const` of 3.1."""
    plain: JsonObject = {}
    given = schema.get("type")
    kinds = given if isinstance(given, list) else [given] if isinstance(given, str) else []
    options = [schema["const"]] if "const" in schema else schema.get("enum")
    nullable = schema.get("nullable") is True
    if kinds:
        extra_kinds: list[JsonValue] = ["null"] if nullable and "null" not in kinds else []
        plain["type"] = kinds[0] if len(kinds) == 1 and not extra_kinds else [*kinds, *extra_kinds]
    if isinstance(options, list):
        extra: list[JsonValue] = [None] if nullable and None not in options else []
        plain["enum"] = [*options, *extra]
    return plain


def _access(schema: JsonValue) -> JsonObject:
    return {"readOnly": True} if isinstance(schema, dict) and schema.get("readOnly") is True else {}


def _merged(schemas: list[JsonObject]) -> JsonObject:
    merged: JsonObject = {}
    properties: JsonObject = {}
    required: list[JsonValue] = []
    for schema in schemas:
        below, names = schema.get("properties"), schema.get("required")
        properties |= below if isinstance(below, dict) else {}
        required += (
            [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        )
        merged |= schema
    if properties:
        merged["properties"] = properties
        merged["required"] = [*dict.fromkeys(str(name) for name in required)]
    return merged
