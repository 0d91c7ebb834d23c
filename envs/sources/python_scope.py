"""Names of a module as its syntax tree defines them, those imported from sibling modules too."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

_MAX_HOPS = 16
"""Modules through which a name is followed; some import it from each other in a circle."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Scope:
    """One module; `siblings` are the trees of those that it may import, by dotted name."""

    tree: ast.Module
    siblings: Mapping[str, ast.Module]
    read: "dict[str, Scope]" = field(default_factory=dict, compare=False, repr=False)
    """Scopes of siblings that were met before; each knows its names only once it has read all."""

    @cached_property
    def _imported(self) -> dict[str, tuple[str, str]]:
        """Module, and name in it (empty for the module itself), of each imported name."""
        found: dict[str, tuple[str, str]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    found[alias.asname or alias.name] = (node.module, alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    found[alias.asname or alias.name] = (alias.name, "")
        return found

    @cached_property
    def _defined(self) -> dict[str, ast.ClassDef | ast.expr]:
        """Classes and values that are assigned at the top level."""
        found: dict[str, ast.ClassDef | ast.expr] = {}
        for node in self.tree.body:
            match node:
                case ast.ClassDef(name=name):
                    found[name] = node
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    found[name] = value
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    found[name] = value
                case _:
                    pass
        return found

    def find(
        self, node: ast.expr, left: int = _MAX_HOPS
    ) -> "tuple[ast.ClassDef | ast.expr, Scope] | None":
        """Return what a name or `module.name` stands for, and its scope; None if unknown."""
        match node:
            case ast.Name(id=name):
                if name in self._defined:
                    return self._defined[name], self
                module, inner = self._imported.get(name, ("", ""))
                return self._in_sibling(module, inner, left)
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                module, inner = self._imported.get(name, (name, ""))
                return self._in_sibling(f"{module}.{inner}" if inner else module, attribute, left)
            case _:
                return None

    def _in_sibling(
        self, module: str, name: str, left: int
    ) -> "tuple[ast.ClassDef | ast.expr, Scope] | None":
        if module not in self.siblings or not name or not left:
            return None
        if module not in self.read:
            self.read[module] = Scope(self.siblings[module], self.siblings, self.read)
        return self.read[module].find(ast.Name(id=name), left - 1)

    def bases(self, node: ast.ClassDef) -> "list[tuple[ast.ClassDef, Scope, Sequence[ast.expr]]]":
        """Return the base classes whose source is known, with their type arguments."""
        found: list[tuple[ast.ClassDef, Scope, Sequence[ast.expr]]] = []
        for base in node.bases:
            named = base.value if isinstance(base, ast.Subscript) else base
            inner = base.slice if isinstance(base, ast.Subscript) else None
            known = self.find(named)
            if known is not None and isinstance(known[0], ast.ClassDef):
                given = inner.elts if isinstance(inner, ast.Tuple) else [inner] if inner else []
                found.append((known[0], known[1], given))
        return found


def name_of(node: ast.expr) -> str:
    """Return the last part of a name, `dataclass` for `dataclasses.dataclass(frozen=True)`."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case _:
            return ""


def type_parameters(node: ast.ClassDef) -> list[str]:
    """Return the type variables of a class, `T` and `U` for `class A(Generic[T, U])`."""
    for base in node.bases:
        if isinstance(base, ast.Subscript) and name_of(base) in ("Generic", "Protocol"):
            inner = base.slice.elts if isinstance(base.slice, ast.Tuple) else [base.slice]
            return [name_of(each) for each in inner]
    return []
