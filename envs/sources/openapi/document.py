"""OpenAPI 3.0 and 3.1 documents: parsing, and following references inside them.

The user chooses the document but often did not write it, so it is not trusted: references stay
inside the document, and circles end.
"""

import json
from functools import cached_property
from urllib.parse import unquote

import yaml
from pydantic import JsonValue
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from envs.errors import DataFileError
from envs.sources.openapi.document_limits import check_text, check_values
from envs.sources.openapi.yaml_core import load_yaml
from envs.tools import JsonObject

_MAX_REFERENCES = 32


class OpenApiDocument:
    """A parsed document; see `parse_document`."""

    def __init__(self, root: JsonObject) -> None:
        self._root = root
        self._resolver = Registry().resolver_with_root(Resource(root, DRAFT202012))
        self._targets: dict[str, JsonValue] = {}
        self.has_parents = any(
            isinstance(schema, dict)
            and "discriminator" in schema
            and not {"oneOf", "anyOf"} & set(schema)
            for schema in self.section("components", "schemas").values()
        )
        """Whether a schema stands for those that inherit from it."""
        self.read_before: dict[tuple, tuple[JsonObject, int]] = {}
        """What `SchemaReader` has read so far."""

    @property
    def root(self) -> JsonObject:
        return self._root

    @property
    def words_beside_references(self) -> bool:
        """Whether the words beside a `$ref` count, as in 3.1; in 3.0 they are ignored."""
        return not str(self._root.get("openapi")).startswith("3.0")

    def resolved(self, node: JsonValue) -> JsonObject:
        """Return `node`, or the target of its `$ref`. Raises DataFileError.

        For anything but schemas: beside a reference, only `summary` and `description` have a
        meaning, and only in 3.1.
        """
        words: JsonObject = {}
        for _ in range(_MAX_REFERENCES):
            if not isinstance(node, dict):
                raise DataFileError(f"expected an object, found {_kind(node)}")
            reference = node.get("$ref")
            if not isinstance(reference, str):
                return {**node, **words} if words else node
            if self.words_beside_references:
                given = {key: node[key] for key in ("summary", "description") if key in node}
                words = {**given, **words}
            node = self.target(reference)
        raise DataFileError("expected references that lead to an object, found a circle")

    def target(self, reference: str) -> JsonValue:
        """Return what a reference inside the document leads to. Raises DataFileError."""
        if reference not in self._targets:
            self._targets[reference] = self._found(reference)
        return self._targets[reference]

    @cached_property
    def general_servers(self) -> list[JsonValue]:
        """The servers that the user's base URL replaces: those of the document as a whole, or the
        first ones of a path where the document names its servers path by path.
        """
        owners = [self._root, *self.section("paths").values()]
        named = (owner.get("servers") for owner in owners if isinstance(owner, dict))
        return next((servers for servers in named if isinstance(servers, list) and servers), [])

    def section(self, *keys: str) -> JsonObject:
        """Return the object at `keys` below the root; an empty one if there is none."""
        node: JsonValue = self._root
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        return node if isinstance(node, dict) else {}

    def _found(self, reference: str) -> JsonValue:
        if not reference.startswith("#"):
            raise DataFileError(
                f"expected references inside the document, found {reference[:200]!r}: bundle the "
                "document into one file"
            )
        # A name that itself contains `%20` may be referred to as it is, without a second encoding.
        for spelling in (reference, reference.replace("%", "%25")):
            try:
                return self._resolver.lookup(spelling).contents
            except (Unresolvable, LookupError, ValueError, TypeError, AttributeError):
                continue
        raise DataFileError(f"reference {unquote(reference)[:200]!r} has no target: correct it")


def parse_document(text: str) -> OpenApiDocument:
    """Parse JSON or YAML text. Raises DataFileError, with the line where it is known."""
    check_text(text)
    root = _loaded(text.removeprefix("\ufeff"))
    check_values(root)
    if not isinstance(root, dict):
        raise DataFileError("expected an OpenAPI document, found no object at the top level")
    version = root.get("openapi")
    if not str(version).startswith(("3.0", "3.1")):
        found = version or root.get("swagger") or "no version"
        raise DataFileError(
            f"expected OpenAPI 3.0 or 3.1, found {str(found)[:40]}: "
            "convert the document to one of these versions"
        )
    if not isinstance(root.get("paths"), dict) or not root["paths"]:
        raise DataFileError("expected `paths` with at least one operation, found none")
    return OpenApiDocument(root)


def _loaded(text: str) -> JsonValue:
    try:
        text.encode()
        if text.lstrip()[:1] != "{":
            return load_yaml(text)
        root = json.loads(text, parse_constant=_refused)
        # The escapes of JSON can write halves of a character, which no request can carry.
        return _mended(root) if "\\ud" in text.lower() else root
    except json.JSONDecodeError as error:
        raise DataFileError(f"line {error.lineno}: invalid JSON ({error.msg})") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise DataFileError(f"line {line}: invalid YAML ({error.problem})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataFileError(f"expected an OpenAPI document in JSON or YAML: {error}") from error


def _refused(word: str) -> JsonValue:
    raise ValueError(f"expected numbers that JSON can write, found {word}: correct it")


def _mended(node: JsonValue) -> JsonValue:
    if isinstance(node, str):
        return node.encode("utf-8", "replace").decode()
    if isinstance(node, list):
        return [_mended(item) for item in node]
    if isinstance(node, dict):
        return {str(_mended(key)): _mended(value) for key, value in node.items()}
    return node


def _kind(node: JsonValue) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(node), "a number")
