"""Tools from Python source: specs are read from the syntax tree; the source is never executed here.

A class is a stateful tool set: its public methods are the tools, and the session holds its object.
A module of functions is a tool set whose state, if any, is in the module.
"""

import ast
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envs.errors import DataFileError
from envs.sources.python_annotations import Annotations, field_keywords, is_field, nullable
from envs.sources.python_docstrings import Documentation, parse_docstring
from envs.sources.python_limits import (
    NotLiteral,
    check_size,
    check_tool,
    check_tree,
    literal,
    told,
)
from envs.sources.python_scope import Function, Scope, name_of, type_parameters
from envs.sources.set_limits import check_set
from envs.tools import JsonObject, ToolSet, ToolSpec

_PASSED_OVER = frozenset({"property", "cached_property", "setter", "deleter", "overload"})
_MAX_BASES = 32
"""Classes above one whose methods it inherits."""
_MAX_CLASSES = 1_000
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_TYPE_SYNTAX = re.compile(r"\s*(?:(?:async\s+)?def|class)\s+\w+\s*\[|\s*type\s+\w+\s*(?:\[[^=]*)?=")
"""How a line begins that has the syntax of PEP 695."""

Siblings = Mapping[str, ast.Module]
"""Trees of the modules that a source may import, by dotted name."""


@dataclass(frozen=True, slots=True)
class _Method:
    """A method, and what the names in it stand for."""

    node: Function
    annotations: Annotations


def tool_set_of_class(
    source: str,
    class_name: str | None = None,
    siblings: Siblings | None = None,
    setup: JsonObject | None = None,
) -> ToolSet:
    """Return the tool set whose tools are the public methods of a class of `source`.

    Without a name, the source must have exactly one class with public methods. Methods inherited
    from classes of the same source, or of `siblings`, count too. `setup` are the arguments of the
    constructor. Raises DataFileError, with the line, if the source cannot be parsed, a method
    cannot be a tool, or the constructor does not take these arguments.
    """
    scope = Scope(parsed(source), siblings or {})
    classes = {node.name: node for node in scope.tree.body if isinstance(node, ast.ClassDef)}
    chosen = _chosen_class(classes, scope, class_name)
    methods = _methods(chosen, Annotations(scope))
    _check_constructor(methods.get("__init__"), chosen.name, setup or {})
    public = {name: method for name, method in methods.items() if _is_tool(name, method.node)}
    if not public:
        raise DataFileError(
            f"class {chosen.name}, line {chosen.lineno}: expected at least one public method, "
            "found none: name tools without a leading underscore"
        )
    check_set(source, len(public))
    specs = [
        _spec(method.node, method.annotations, bound=not _static(method.node))
        for method in public.values()
    ]
    return ToolSet(
        tools=tuple(specs),
        sources=(source,) * len(specs),
        functions=tuple(f"{chosen.name}.{spec.name}" for spec in specs),
        setup={chosen.name: setup} if setup else {},
    )


def tool_set_of_functions(source: str, siblings: Siblings | None = None) -> ToolSet:
    """Return the tool set whose tools are the public top-level functions of `source`.

    Raises DataFileError, with the line, if the source cannot be parsed or a function cannot be a
    tool.
    """
    scope = Scope(parsed(source), siblings or {})
    functions = {node.name: node for node in scope.tree.body if isinstance(node, Function)}
    public = [function for name, function in functions.items() if not name.startswith("_")]
    if not public:
        raise DataFileError(
            "expected at least one public function at the top level, found none: name tools "
            'without a leading underscore; for the methods of a class write {"python": ...}'
        )
    check_set(source, len(public))
    annotations = Annotations(scope)
    specs = [_spec(function, annotations, bound=False) for function in public]
    return ToolSet(
        tools=tuple(specs),
        sources=(source,) * len(specs),
        functions=tuple(spec.name for spec in specs),
    )


def parsed(source: str) -> ast.Module:
    """Return the syntax tree of a source. Raises DataFileError, with the line."""
    check_size(source)
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise DataFileError(f"line {error.lineno}: {error.msg}: {_wanted(error)}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise DataFileError(
            f"expected Python source, found text that cannot be parsed: {error}"
        ) from (error)
    check_tree(tree)
    return tree


def _wanted(error: SyntaxError) -> str:
    """Return which source was expected, and the way out if a later Python would take this one."""
    wanted = f"expected source of Python {_VERSION}"
    if not _TYPE_SYNTAX.match(error.text or ""):
        return wanted
    return (
        f"{wanted}, found type parameters or a `type` statement, which Python 3.12 brought: write "
        '`T = TypeVar("T")`, `Generic[T]` and `Name = ...`'
    )


def _chosen_class(classes: dict[str, ast.ClassDef], scope: Scope, name: str | None) -> ast.ClassDef:
    if name is not None:
        if name not in classes:
            raise DataFileError(
                f"expected a class {name} at the top level, found "
                f"{', '.join(classes) or 'no class'}: correct the name"
            )
        return classes[name]
    if len(classes) > _MAX_CLASSES:
        raise DataFileError(
            f"expected at most {_MAX_CLASSES} classes to choose from, found {len(classes)}: choose "
            "one by name"
        )
    with_tools = [
        node
        for node in classes.values()
        if not node.name.startswith("_")
        and any(_is_tool(k, m.node) for k, m in _methods(node, Annotations(scope)).items())
    ]
    if len(with_tools) != 1:
        raise DataFileError(
            "expected one class with public methods, found "
            f"{', '.join(node.name for node in with_tools) or 'none'}: choose one by name"
        )
    return with_tools[0]


def _methods(node: ast.ClassDef, annotations: Annotations) -> dict[str, _Method]:
    """Return the methods of a class by name: its own first, then those of bases that are known.

    Each class counts once, however many ways lead to it; so circles end too.
    """
    methods: dict[str, _Method] = {}
    pending, seen = [(node, annotations)], set[int]()
    while pending and len(seen) <= _MAX_BASES:
        each, where = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        for item in each.body:
            if isinstance(item, Function) and item.name not in methods:
                methods[item.name] = _Method(item, where)
        above = []
        for base, scope, given in where.scope.bases(each)[:_MAX_BASES]:
            pairs = zip(type_parameters(base), given, strict=False)
            bound = {name: (argument, where) for name, argument in pairs}
            above.append((base, Annotations(scope, bound, budget=where.budget)))
        pending += reversed(above)
    return methods


def _check_constructor(constructor: _Method | None, class_name: str, setup: JsonObject) -> None:
    if constructor is None:
        return  # a dataclass, or one without arguments; a wrong one fails when tools are loaded
    node, given = constructor.node, constructor.node.args
    where = f"class {class_name}, line {node.lineno}"
    positional = [*given.posonlyargs, *given.args][1:]
    required = positional[: len(positional) - len(given.defaults)] if positional else []
    required += [
        argument
        for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
        if default is None
    ]
    missing = [argument.arg for argument in required if argument.arg not in setup]
    if missing:
        raise DataFileError(
            f"{where}: expected a value for each argument of the constructor, found none for "
            f"{', '.join(missing)}: give it in `arguments`, or a default in the class"
        )
    rest = [given.vararg] if given.vararg else []
    known = [argument.arg for argument in (*positional, *rest, *given.kwonlyargs)]
    unknown = [name for name in setup if name not in known]
    if unknown and given.kwarg is None:
        raise DataFileError(
            f"{where}: expected `arguments` that the constructor takes "
            f"({', '.join(known) or 'none'}), found {', '.join(unknown)}: correct them"
        )


def _is_tool(name: str, method: Function) -> bool:
    return not name.startswith("_") and _PASSED_OVER.isdisjoint(map(name_of, method.decorator_list))


def _static(method: Function) -> bool:
    return "staticmethod" in map(name_of, method.decorator_list)


def _spec(function: Function, annotations: Annotations, *, bound: bool) -> ToolSpec:
    where = f"{function.name}, line {function.lineno}"
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    if bound:
        if not positional and arguments.vararg is None:
            raise DataFileError(f"{where}: expected `self` as the first argument of a method")
        positional = positional[1:]
    # The syntax tree lists the defaults of the last arguments only: pad them at the front. They may
    # include one for `self`, so the slice drops it again.
    defaults: Sequence[ast.expr | None] = arguments.defaults
    padded = [*([None] * (len(positional) - len(defaults))), *defaults][-len(positional) or None :]
    pairs = [
        *zip(positional, padded if positional else [], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    many = arguments.vararg
    names = [argument.arg for argument in (*(each for each, _ in pairs), *([many] if many else ()))]
    documentation = parse_docstring(told(ast.get_docstring(function) or ""), names)
    properties: JsonObject = {}
    for argument, default in pairs:
        if default is None or not _is_callable(argument):
            properties[argument.arg] = _property(argument, default, annotations, documentation)
    if many is not None:
        properties[many.arg] = _many(many, annotations, documentation)
    rest = arguments.kwarg
    parameters: JsonObject = {
        "type": "object",
        "properties": properties,
        "required": [a.arg for a, default in pairs if default is None or is_field(default)],
        "additionalProperties": (annotations.schema(rest) or True) if rest else False,
    }
    check_tool(where, documentation.summary, parameters)
    return ToolSpec(name=function.name, description=documentation.summary, parameters=parameters)


def _property(
    argument: ast.arg,
    default: ast.expr | None,
    annotations: Annotations,
    documentation: Documentation,
) -> JsonObject:
    schema = annotations.schema(argument)
    if isinstance(default, ast.Constant) and default.value is None:
        schema = nullable(schema)  # `size: int = None` takes null
    if text := documentation.arguments.get(argument.arg):
        schema["description"] = text
    if is_field(default):
        return schema | field_keywords(default, schema)
    if default is not None:
        try:
            value = literal(default)
        except NotLiteral:
            return schema
        if value is not None and not isinstance(default, ast.Tuple):
            schema["default"] = value
    return schema


def _many(argument: ast.arg, annotations: Annotations, documentation: Documentation) -> JsonObject:
    """Return the schema of `*argument`: a list, which may be left out."""
    schema: JsonObject = {"type": "array"}
    if items := annotations.schema(argument):
        schema["items"] = items
    if text := documentation.arguments.get(argument.arg):
        schema["description"] = text
    return schema


def _is_callable(argument: ast.arg) -> bool:
    """Whether an argument is a function, which JSON cannot carry; its default then stays."""
    return argument.annotation is not None and name_of(argument.annotation) == "Callable"
