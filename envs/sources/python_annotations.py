"""JSON schemas from Python annotations, read from the syntax tree."""

import ast

from pydantic import JsonValue

from envs.errors import DataFileError
from envs.tools import JsonObject

UNDERSTOOD = "str, int, float, bool, list[...], dict[str, ...], Optional, Union, Literal, Any"

_SCALARS = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "None": "null",
    "NoneType": "null",
}
_LISTS = frozenset({"list", "List", "Sequence", "Iterable", "Collection"})
_DICTS = frozenset({"dict", "Dict", "Mapping", "MutableMapping"})
_ANYTHING = frozenset({"Any", "object", "JsonValue"})
_MAX_DEPTH = 16


class Annotations:
    """Reads annotations of one module and resolves names assigned at its top level."""

    def __init__(self, tree: ast.Module) -> None:
        self._aliases: dict[str, ast.expr] = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target = node.targets[0]
                if isinstance(target, ast.Name):
                    self._aliases[target.id] = node.value
            elif (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and node.value is not None
            ):
                self._aliases[node.target.id] = node.value

    def schema(self, argument: ast.arg) -> JsonObject:
        """Return the schema of an argument; without an annotation, any value is allowed.

        Raises DataFileError for an annotation that JSON cannot express.
        """
        if argument.annotation is None:
            return {}
        try:
            return self._schema(argument.annotation, _MAX_DEPTH)
        except _Unknown as fault:
            raise DataFileError(
                f"line {argument.lineno}: expected an annotation of argument `{argument.arg}` made "
                f"of {UNDERSTOOD}, found `{fault}`: JSON has no other types"
            ) from None

    def _schema(self, node: ast.expr, depth: int) -> JsonObject:
        if depth == 0:
            raise _Unknown(ast.unparse(node))
        match node:
            case ast.Constant(value=None):
                return {"type": "null"}
            case ast.Constant(value=str(text)):
                try:
                    return self._schema(ast.parse(text, mode="eval").body, depth - 1)
                except SyntaxError:
                    raise _Unknown(text) from None
            case ast.Name(id=name) | ast.Attribute(attr=name):
                return self._named(name, node, depth)
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                return _union([self._schema(left, depth - 1), self._schema(right, depth - 1)])
            case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
                items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                return self._generic(name, items, node, depth)
            case _:
                raise _Unknown(ast.unparse(node))

    def _named(self, name: str, node: ast.expr, depth: int) -> JsonObject:
        if name in _SCALARS:
            return {"type": _SCALARS[name]}
        if name in _LISTS:
            return {"type": "array"}
        if name in _DICTS:
            return {"type": "object"}
        if name in _ANYTHING:
            return {}
        if isinstance(node, ast.Name) and name in self._aliases:
            return self._schema(self._aliases[name], depth - 1)
        raise _Unknown(ast.unparse(node))

    def _generic(self, name: str, items: list[ast.expr], node: ast.expr, depth: int) -> JsonObject:
        if name == "Optional":
            return _union([self._schema(items[0], depth - 1), {"type": "null"}])
        if name == "Union":
            return _union([self._schema(item, depth - 1) for item in items])
        if name == "Literal":
            return _literal(items, node)
        if name == "Annotated":
            schema = self._schema(items[0], depth - 1)
            for extra in items[1:]:
                if isinstance(extra, ast.Constant) and isinstance(extra.value, str):
                    schema["description"] = extra.value
            return schema
        if name in _LISTS and len(items) == 1:
            return {"type": "array", "items": self._schema(items[0], depth - 1)}
        if name in _DICTS and len(items) == 2:
            if self._schema(items[0], depth - 1).get("type") != "string":
                raise _Unknown(ast.unparse(node))  # keys of a JSON object are strings
            return {"type": "object", "additionalProperties": self._schema(items[1], depth - 1)}
        raise _Unknown(ast.unparse(node))


class _Unknown(Exception):
    """An annotation without a JSON schema; the message is the annotation's text."""


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
                merged = {**others[0], "type": [others[0]["type"], "null"]}
                options = merged.get("enum")
                if isinstance(options, list):
                    merged["enum"] = [*options, None]
                return merged
            return {"anyOf": [dict(schema) for schema in schemas]}
        kinds += given if isinstance(given, list) else [given]
    distinct = list(dict.fromkeys(str(kind) for kind in kinds))
    return {"type": distinct[0] if len(distinct) == 1 else [*distinct]}


def _literal(items: list[ast.expr], node: ast.expr) -> JsonObject:
    options: list[JsonValue] = []
    for item in items:
        if not isinstance(item, ast.Constant) or not isinstance(
            item.value, str | int | bool | None
        ):
            raise _Unknown(ast.unparse(node))
        options.append(item.value)
    names = {str: "string", bool: "boolean", int: "integer", type(None): "null"}
    kinds = list(dict.fromkeys(names[type(option)] for option in options))
    return {"type": kinds[0] if len(kinds) == 1 else [*kinds], "enum": options}
