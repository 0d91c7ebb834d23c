"""JSON schemas from Python annotations, read from the syntax tree."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeGuard

from pydantic import JsonValue

from envs.errors import DataFileError
from envs.sources.python_classes import Structure, enum_values, structure_of
from envs.sources.python_limits import Budget, NotLiteral, literal, shown, told
from envs.sources.python_scope import Scope, name_of
from envs.tools import JsonObject

UNDERSTOOD = (
    "str, int, float, bool, list[...], tuple[...], set[...], dict[str, ...], Optional, Union, "
    "Literal, Any, dates, Decimal, UUID, Path, and classes of the source that are an Enum, a "
    "dataclass, a TypedDict, a NamedTuple or a pydantic model"
)

_SCALARS: dict[str, JsonObject] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "None": {"type": "null"},
    "NoneType": {"type": "null"},
    "date": {"type": "string", "format": "date"},
    "datetime": {"type": "string", "format": "date-time"},
    "time": {"type": "string", "format": "time"},
    "timedelta": {"type": "number"},
    "UUID": {"type": "string", "format": "uuid"},
    "Decimal": {"type": ["number", "string"]},
    "Fraction": {"type": "string"},
    "Path": {"type": "string"},
    "PurePath": {"type": "string"},
    "bytes": {"type": "string"},
}
_LISTS = frozenset(
    {"list", "List", "Sequence", "MutableSequence", "Iterable", "Collection", "deque", "Deque"}
)
_SETS = frozenset({"set", "Set", "frozenset", "FrozenSet", "AbstractSet", "MutableSet"})
_TUPLES = frozenset({"tuple", "Tuple"})
_DICTS = frozenset({"dict", "Dict", "Mapping", "MutableMapping", "OrderedDict", "defaultdict"})
_KEYS = frozenset({"string", "integer"})
"""Types whose text can be a key of a JSON object."""
_ANYTHING = frozenset({"Any", "object", "JsonValue"})
_WRAPPERS = frozenset({"Final", "ClassVar", "Required", "NotRequired", "ReadOnly"})
_MAX_DEPTH = 16


class UnknownAnnotation(Exception):
    """An annotation without a JSON schema; the message is the annotation's text."""


@dataclass(frozen=True, slots=True)
class Annotations:
    """Reads annotations in one scope; `bound` are its type variables with what they stand for."""

    scope: Scope
    bound: Mapping[str, "tuple[ast.expr, Annotations]"] = field(default_factory=dict)
    inside: frozenset[str] = frozenset()
    """Classes that are being read, one of which may contain itself."""
    budget: Budget = field(default_factory=Budget)

    def schema(self, argument: ast.arg) -> JsonObject:
        """Return the schema of an argument; without an annotation, any value is allowed.

        Raises DataFileError for an annotation that JSON cannot express.
        """
        if argument.annotation is None:
            return {}
        try:
            return self.of(argument.annotation, _MAX_DEPTH)
        except UnknownAnnotation as fault:
            raise DataFileError(
                f"line {argument.lineno}: expected an annotation of argument `{argument.arg}` made "
                f"of {UNDERSTOOD}, found `{fault}`: JSON has no other types"
            ) from None

    def of(self, node: ast.expr, depth: int) -> JsonObject:
        """Return the schema of an annotation. Raises UnknownAnnotation, DataFileError."""
        self.budget.spend()
        if depth == 0:
            raise UnknownAnnotation(shown(node))
        match node:
            case ast.Constant(value=None):
                return {"type": "null"}
            case ast.Constant(value=str(text)):
                try:
                    return self.of(ast.parse(text, mode="eval").body, depth - 1)
                except (SyntaxError, ValueError, RecursionError, MemoryError):
                    raise UnknownAnnotation(told(text[:200])) from None
            case ast.Name(id=name) | ast.Attribute(attr=name):
                return self._named(name, node, depth)
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                return _union([self.of(left, depth - 1), self.of(right, depth - 1)])
            case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
                items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                return self._generic(name, items, node, depth)
            case _:
                raise UnknownAnnotation(shown(node))

    def _named(self, name: str, node: ast.expr, depth: int) -> JsonObject:
        if isinstance(node, ast.Name) and name in self.bound:
            given, there = self.bound[name]
            return there.of(given, depth - 1)
        known = self.scope.find(node)
        if known is not None:
            return self._known(known[0], known[1], node, depth)
        if name in _SCALARS:
            return dict(_SCALARS[name])
        if name in _LISTS | _TUPLES | _SETS:
            return {"type": "array"}
        if name in _DICTS:
            return {"type": "object"}
        if name in _ANYTHING:
            return {}
        raise UnknownAnnotation(shown(node))

    def _known(
        self, what: "ast.ClassDef | ast.expr", scope: Scope, node: ast.expr, depth: int
    ) -> JsonObject:
        """Return the schema of a class or an alias that the source defines."""
        there = replace(self, scope=scope, bound={})
        if isinstance(what, ast.ClassDef):
            return there.of_class(what, node, depth)
        if isinstance(what, ast.Call):
            if name_of(what.func) == "NewType" and len(what.args) == 2:
                return there.of(what.args[1], depth - 1)
            if name_of(what.func) == "TypeVar":
                limits = [keyword.value for keyword in what.keywords if keyword.arg == "bound"]
                return there.of(limits[0], depth - 1) if limits else {}
        return there.of(what, depth - 1)

    def of_class(self, node: ast.ClassDef, named: ast.expr, depth: int) -> JsonObject:
        """Return the schema of a class. Raises UnknownAnnotation if JSON cannot carry one."""
        self.budget.spend(len(node.body))
        if (values := enum_values(node, self.scope)) is not None:
            return literal_schema(values)
        structure = structure_of(node, self.scope)
        if structure is None:
            raise UnknownAnnotation(shown(named))
        if node.name in self.inside:
            return {"type": "object"}
        return self._object(structure, replace(self, inside=self.inside | {node.name}), depth)

    def _object(self, structure: Structure, there: "Annotations", depth: int) -> JsonObject:
        properties: JsonObject = {}
        for name, member in structure.fields.items():
            inner = replace(there, scope=member.scope)
            properties[name] = inner.of(member.annotation, depth - 1)
        found: JsonObject = {
            "type": "object",
            "properties": properties,
            "required": [name for name, member in structure.fields.items() if member.required],
        }
        if structure.closed:
            found["additionalProperties"] = False
        return found

    def _generic(self, name: str, items: list[ast.expr], node: ast.expr, depth: int) -> JsonObject:
        if name == "Optional":
            return _union([self.of(items[0], depth - 1), {"type": "null"}])
        if name == "Union":
            return _union([self.of(item, depth - 1) for item in items])
        if name == "Literal":
            return literal_schema([self._option(item, node) for item in items])
        if name in _WRAPPERS and len(items) == 1:
            return self.of(items[0], depth - 1)
        if name == "Annotated":
            schema = self.of(items[0], depth - 1)
            for extra in items[1:]:
                schema |= _metadata(extra, schema)
            return schema
        if name in _LISTS and len(items) == 1:
            return {"type": "array", "items": self.of(items[0], depth - 1)}
        if name in _SETS and len(items) == 1:
            return {"type": "array", "items": self.of(items[0], depth - 1), "uniqueItems": True}
        if name in _TUPLES:
            return self._tuple(items, depth)
        if name in _DICTS and len(items) == 2:
            if self.of(items[0], depth - 1).get("type") not in _KEYS:
                raise UnknownAnnotation(shown(node))
            return {"type": "object", "additionalProperties": self.of(items[1], depth - 1)}
        raise UnknownAnnotation(shown(node))

    def _tuple(self, items: list[ast.expr], depth: int) -> JsonObject:
        match items:
            case [item, ast.Constant(value=value)] if value is Ellipsis:
                return {"type": "array", "items": self.of(item, depth - 1)}
            case [ast.Tuple(elts=[])]:
                return {"type": "array", "maxItems": 0}
        schemas: list[JsonValue] = [self.of(item, depth - 1) for item in items]
        size: JsonObject = {"minItems": len(items), "maxItems": len(items)}
        if all(schema == schemas[0] for schema in schemas):
            return {"type": "array", "items": schemas[0], **size}
        return {"type": "array", "prefixItems": schemas, **size}

    def _option(self, item: ast.expr, node: ast.expr) -> JsonValue:
        """Return an option of a Literal: a constant, or the value of a member of an Enum."""
        try:
            value: object = literal(item)
        except NotLiteral:
            value = self._member(item)
        if not isinstance(value, str | int | float | bool | None):
            raise UnknownAnnotation(shown(node))
        return value

    def _member(self, item: ast.expr) -> object:
        if not isinstance(item, ast.Attribute):
            return ...
        known = self.scope.find(item.value)
        if known is None or not isinstance(known[0], ast.ClassDef):
            return ...
        values = enum_values(known[0], known[1], by_name=True) or {}
        return values.get(item.attr, ...) if isinstance(values, dict) else ...


def _union(schemas: list[JsonObject]) -> JsonObject:
    if any(not schema for schema in schemas):
        return {}
    kinds: list[JsonValue] = []
    for schema in schemas:
        given = schema.get("type")
        if not set(schema) <= {"type"} or given is None:
            # one structured type and null are one schema, so `Optional[list[int]]` keeps its items
            others = [other for other in schemas if other != {"type": "null"}]
            if len(others) == 1 and isinstance(others[0].get("type"), str):
                return nullable(others[0])
            return {"anyOf": [dict(schema) for schema in schemas]}
        kinds += given if isinstance(given, list) else [given]
    distinct = list(dict.fromkeys(str(kind) for kind in kinds))
    return {"type": distinct[0] if len(distinct) == 1 else [*distinct]}


def nullable(schema: JsonObject) -> JsonObject:
    """Return `schema` with null allowed as well."""
    kind = schema.get("type")
    if not schema or kind == "null" or (isinstance(kind, list) and "null" in kind):
        return schema
    if kind is None:
        options = schema.get("anyOf")
        has_null = isinstance(options, list) and {"type": "null"} in options
        return schema if has_null else {"anyOf": [schema, {"type": "null"}]}
    kinds: list[JsonValue] = [*kind] if isinstance(kind, list) else [kind]
    merged: JsonObject = {**schema, "type": [*kinds, "null"]}
    options = merged.get("enum")
    if isinstance(options, list) and None not in options:
        merged["enum"] = [*options, None]
    return merged


def literal_schema(options: "list[JsonValue] | dict[str, JsonValue]") -> JsonObject:
    """Return the schema of a value that is one of `options`."""
    values = list(options.values()) if isinstance(options, dict) else options
    names = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    kinds = list(dict.fromkeys(names.get(type(value), "array") for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else [*kinds], "enum": values}


_OF_FIELD = {
    "title": "title",
    "description": "description",
    "examples": "examples",
    "gt": "exclusiveMinimum",
    "ge": "minimum",
    "lt": "exclusiveMaximum",
    "le": "maximum",
    "multiple_of": "multipleOf",
    "pattern": "pattern",
}
"""Keywords of `Field` that schemas have under these names."""
_OF_LENGTH = {"min_length": ("minLength", "minItems"), "max_length": ("maxLength", "maxItems")}


def _metadata(extra: ast.expr, schema: JsonObject) -> JsonObject:
    """Return what a part of `Annotated` says: a description, or the keywords of a `Field`."""
    if isinstance(extra, ast.Constant) and isinstance(extra.value, str):
        return {"description": told(extra.value)}
    if isinstance(extra, ast.Call) and name_of(extra) == "Doc" and extra.args:
        text = extra.args[0]
        return {"description": told(str(text.value))} if isinstance(text, ast.Constant) else {}
    return field_keywords(extra, schema)


def is_field(value: ast.expr | None) -> TypeGuard[ast.Call]:
    """Whether an expression is pydantic's `Field(...)`."""
    return isinstance(value, ast.Call) and name_of(value) == "Field"


def field_keywords(value: ast.expr, schema: JsonObject) -> JsonObject:
    """Return what `Field(...)` adds to `schema`, as far as it is literal; of others nothing."""
    found: JsonObject = {}
    for keyword in value.keywords if is_field(value) else ():
        try:
            given = literal(keyword.value)
        except NotLiteral:
            continue
        of_text, of_list = _OF_LENGTH.get(keyword.arg or "", ("", ""))
        key = of_list if schema.get("type") == "array" else of_text
        if key := key or _OF_FIELD.get(keyword.arg or "", ""):
            found[key] = given
    return found
