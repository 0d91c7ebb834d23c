"""Tools from Python source: specs are read from the syntax tree; the source is never executed here.

A class is a stateful tool set: its public methods are the tools, and the session holds its object.
A module of functions is a tool set whose state, if any, is in the module.
"""

import ast
from collections.abc import Sequence

from envs.errors import DataFileError
from envs.sources.python_annotations import Annotations
from envs.sources.python_docstrings import Documentation, parse_docstring
from envs.tools import JsonObject, ToolSet, ToolSpec

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_PASSED_OVER = frozenset({"property", "cached_property", "setter", "deleter", "overload"})


def tool_set_of_class(source: str, class_name: str | None = None) -> ToolSet:
    """Return the tool set whose tools are the public methods of a class of `source`.

    Without a name, the source must have exactly one class with public methods. Methods inherited
    from classes of the same source count too. Raises DataFileError, with the line, if the source
    cannot be parsed or a method cannot be a tool.
    """
    tree = _parsed(source)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    chosen = _chosen_class(classes, class_name)
    methods = _methods(chosen, classes)
    _check_constructor(methods.get("__init__"), chosen.name)
    public = [method for name, method in methods.items() if _is_tool(name, method)]
    if not public:
        raise DataFileError(
            f"class {chosen.name}, line {chosen.lineno}: expected at least one public method, "
            "found none: name tools without a leading underscore"
        )
    annotations = Annotations(tree)
    specs = [_spec(method, annotations, bound=not _static(method)) for method in public]
    return ToolSet(
        tools=tuple(specs),
        sources=(source,) * len(specs),
        functions=tuple(f"{chosen.name}.{spec.name}" for spec in specs),
    )


def tool_set_of_functions(source: str) -> ToolSet:
    """Return the tool set whose tools are the public top-level functions of `source`.

    Raises DataFileError, with the line, if the source cannot be parsed or a function cannot be a
    tool.
    """
    tree = _parsed(source)
    functions = {node.name: node for node in tree.body if isinstance(node, _Function)}
    public = [function for name, function in functions.items() if not name.startswith("_")]
    if not public:
        raise DataFileError(
            "expected at least one public function at the top level, found none: name tools "
            'without a leading underscore; for the methods of a class write {"python": ...}'
        )
    annotations = Annotations(tree)
    specs = [_spec(function, annotations, bound=False) for function in public]
    return ToolSet(
        tools=tuple(specs),
        sources=(source,) * len(specs),
        functions=tuple(spec.name for spec in specs),
    )


def _parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise DataFileError(f"line {error.lineno}: {error.msg}: expected Python source") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise DataFileError(
            f"expected Python source, found text that cannot be parsed: {error}"
        ) from (error)


def _chosen_class(classes: dict[str, ast.ClassDef], name: str | None) -> ast.ClassDef:
    if name is not None:
        if name not in classes:
            raise DataFileError(
                f"expected a class {name} at the top level, found "
                f"{', '.join(classes) or 'no class'}: correct the name"
            )
        return classes[name]
    with_tools = [
        node
        for node in classes.values()
        if not node.name.startswith("_")
        and any(_is_tool(key, method) for key, method in _methods(node, classes).items())
    ]
    if len(with_tools) != 1:
        raise DataFileError(
            "expected one class with public methods, found "
            f"{', '.join(node.name for node in with_tools) or 'none'}: choose one by name"
        )
    return with_tools[0]


def _methods(
    node: ast.ClassDef, classes: dict[str, ast.ClassDef], seen: frozenset[str] = frozenset()
) -> dict[str, _Function]:
    """Return the methods of a class by name: its own first, then those of its bases in the source.

    `seen` holds the classes that were visited, so that a cycle of bases ends.
    """
    methods: dict[str, _Function] = {
        item.name: item for item in node.body if isinstance(item, _Function)
    }
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes and base.id not in seen:
            inherited = _methods(classes[base.id], classes, seen | {node.name})
            methods |= {name: method for name, method in inherited.items() if name not in methods}
    return methods


def _check_constructor(constructor: _Function | None, class_name: str) -> None:
    if constructor is None:
        return
    given = constructor.args
    positional = [*given.posonlyargs, *given.args][1:]
    required = positional[: len(positional) - len(given.defaults)] if positional else []
    required += [
        argument
        for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
        if default is None
    ]
    if required:
        raise DataFileError(
            f"class {class_name}, line {constructor.lineno}: expected a constructor without "
            f"arguments, found {', '.join(argument.arg for argument in required)}: give defaults"
        )


def _decorators(function: _Function) -> list[str]:
    names: list[str] = []
    for decorator in function.decorator_list:
        node = decorator.func if isinstance(decorator, ast.Call) else decorator
        names.append(node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", ""))
    return names


def _is_tool(name: str, method: _Function) -> bool:
    return not name.startswith("_") and _PASSED_OVER.isdisjoint(_decorators(method))


def _static(method: _Function) -> bool:
    return "staticmethod" in _decorators(method)


def _spec(function: _Function, annotations: Annotations, *, bound: bool) -> ToolSpec:
    where = f"{function.name}, line {function.lineno}"
    _refuse_impossible(function, where)
    arguments = function.args
    positional = arguments.args
    if bound:
        if not positional:
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
    documentation = parse_docstring(ast.get_docstring(function) or "")
    properties: JsonObject = {}
    for argument, default in pairs:
        properties[argument.arg] = _property(argument, default, annotations, documentation)
    return ToolSpec(
        name=function.name,
        description=documentation.summary,
        parameters={
            "type": "object",
            "properties": properties,
            "required": [argument.arg for argument, default in pairs if default is None],
            "additionalProperties": False,
        },
    )


def _property(
    argument: ast.arg,
    default: ast.expr | None,
    annotations: Annotations,
    documentation: Documentation,
) -> JsonObject:
    schema = annotations.schema(argument)
    if text := documentation.arguments.get(argument.arg):
        schema["description"] = text
    if default is not None:
        try:
            value = ast.literal_eval(default)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return schema  # this default is known only by running the source
        if isinstance(value, str | int | float | bool | list | dict) and not isinstance(
            value, complex
        ):
            schema["default"] = value
    return schema


def _refuse_impossible(function: _Function, where: str) -> None:
    """Raise DataFileError for a function that JSON keyword arguments cannot call."""
    arguments = function.args
    if isinstance(function, ast.AsyncFunctionDef):
        raise DataFileError(f"{where}: expected a plain function, found `async def`: drop `async`")
    if arguments.posonlyargs:
        names = ", ".join(argument.arg for argument in arguments.posonlyargs)
        raise DataFileError(
            f"{where}: expected arguments that can be given by name, found the positional-only "
            f"{names}: drop the `/`"
        )
    for argument, stars in ((arguments.vararg, "*"), (arguments.kwarg, "**")):
        if argument is not None:
            raise DataFileError(
                f"{where}: expected named arguments, found `{stars}{argument.arg}`: name each "
                "argument, or take one list or dict"
            )
    if _yields(function):
        raise DataFileError(f"{where}: expected a returned value, found `yield`: return a list")


def _yields(function: _Function) -> bool:
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            pending.extend(ast.iter_child_nodes(node))
    return False
