"""Classes of a source as values that JSON carries: enumerations, and structures with fields."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import JsonValue

from envs.sources.python_limits import NotLiteral, literal
from envs.sources.python_scope import Scope, name_of

_ENUMS = frozenset({"Enum", "IntEnum", "StrEnum", "Flag", "IntFlag"})
_KINDS = {"TypedDict": "TypedDict", "NamedTuple": "NamedTuple", "BaseModel": "BaseModel"}
_UNKNOWN = object()
_MAX_BASES = 16


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a structure, in the scope of the class that defines it."""

    annotation: ast.expr
    scope: Scope
    required: bool


@dataclass(frozen=True, slots=True)
class Structure:
    """The fields of a dataclass, TypedDict, NamedTuple or pydantic model; `closed` if there may be
    no others.
    """

    fields: dict[str, Field]
    closed: bool


def enum_values(
    node: ast.ClassDef, scope: Scope, *, by_name: bool = False
) -> "list[JsonValue] | dict[str, JsonValue] | None":
    """Return the values of an enumeration, by name if wanted; None if the class is none.

    A member whose value only running the source could tell is given by its name.
    """
    kinds = [name for each, _ in _lineage(node, scope) for name in map(name_of, each.bases)]
    if not _ENUMS & set(kinds):
        return None
    found: dict[str, JsonValue] = {}
    last = 0
    for item in node.body:
        if not isinstance(item, ast.Assign) or not isinstance(item.targets[0], ast.Name):
            continue
        name = item.targets[0].id
        if name.startswith("_"):
            continue
        if name_of(item.value) == "auto":
            found[name] = name.lower() if "StrEnum" in kinds else last + 1
        else:
            value = _constant(item.value)
            found[name] = name if value is _UNKNOWN else value  # type: ignore[assignment]
        if isinstance(found[name], int):
            last = int(str(int(found[name])))  # type: ignore[arg-type]
    return found if by_name else list(found.values())


def _constant(node: ast.expr) -> object:
    try:
        value = literal(node)
    except NotLiteral:
        return _UNKNOWN
    return _UNKNOWN if isinstance(value, dict) else value


def structure_of(node: ast.ClassDef, scope: Scope) -> Structure | None:
    """Return the fields of a class, those of its bases first; None if it is no structure."""
    lineage = list(_lineage(node, scope))
    names = {name_of(base) for each, _ in lineage for base in each.bases}
    kind = next((_KINDS[name] for name in _KINDS if name in names), "")
    if not kind:
        marks = {name_of(mark) for each, _ in lineage for mark in each.decorator_list}
        if "dataclass" not in marks:
            return None
        kind = "dataclass"
    fields: dict[str, Field] = {}
    for each, where in reversed(lineage):
        total = not any(k.arg == "total" and _constant(k.value) is False for k in each.keywords)
        for item in each.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                wrapper = (
                    name_of(item.annotation) if isinstance(item.annotation, ast.Subscript) else ""
                )
                if wrapper == "ClassVar" or item.target.id.startswith("_"):
                    continue
                has_default = item.value is not None and not _is_bare_field(item.value)
                required = wrapper == "Required" or (total and wrapper != "NotRequired")
                fields[item.target.id] = Field(item.annotation, where, required and not has_default)
    return Structure(fields, closed=kind != "BaseModel")


def _is_bare_field(value: ast.expr) -> bool:
    """Whether a value is `field(...)` or `Field(...)` that gives no default."""
    if not isinstance(value, ast.Call) or name_of(value.func) not in ("field", "Field"):
        return False
    names = {keyword.arg for keyword in value.keywords}
    first = value.args[0] if value.args else None
    has_first = first is not None and _constant(first) is not _UNKNOWN
    return not has_first and names.isdisjoint({"default", "default_factory"})


def _lineage(node: ast.ClassDef, scope: Scope) -> Iterator[tuple[ast.ClassDef, Scope]]:
    """Yield a class and its bases whose source is known, each once."""
    pending, seen = [(node, scope)], 0
    while pending and seen < _MAX_BASES:
        each, where = pending.pop(0)
        seen += 1
        yield each, where
        pending += [(base, place) for base, place, _ in where.bases(each)[:_MAX_BASES]]
