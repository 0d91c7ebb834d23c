"""Example calls that the author of a ToolHop tool wrote below its source.

Two thirds of the sources end with one, for example `print(find(name='Ada'))`. The source is parsed
and never executed here, so only arguments are found that are literals, or names of literals.
"""

import ast
from collections.abc import Iterator

from envs.tools import JsonObject


def example_calls(source: str, function: str) -> Iterator[JsonObject]:
    """Yield the arguments of each call of `function` outside of functions, by parameter name."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    parameters: list[str] = []
    known: dict[str, ast.expr] = {}
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            if statement.name == function:
                parameters = [argument.arg for argument in statement.args.args]
            continue
        if isinstance(statement, ast.ClassDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Assign):
                known |= {
                    target.id: node.value for target in node.targets if isinstance(target, ast.Name)
                }
        for node in ast.walk(statement):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            arguments = _arguments(node, parameters, known) if node.func.id == function else None
            if arguments is not None:
                yield arguments


def _arguments(
    call: ast.Call, parameters: list[str], known: dict[str, ast.expr]
) -> JsonObject | None:
    """Return the arguments of a call; None if one of them is no literal, or cannot be JSON."""
    found: JsonObject = {}
    if len(call.args) > len(parameters):
        return None
    try:
        for name, node in zip(parameters, call.args, strict=False):
            found[name] = _literal(node, known)
        for keyword in call.keywords:
            value = _literal(keyword.value, known)
            if keyword.arg is not None:
                found[keyword.arg] = value
            elif isinstance(value, dict):
                found |= {str(name): item for name, item in value.items()}
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None
    return found


def _literal(node: ast.expr, known: dict[str, ast.expr]) -> JsonObject | list | str | float | None:
    """Return the value of a literal, with tuples as lists. Raises ValueError for other code."""
    if isinstance(node, ast.Name):
        node = known.get(node.id, node)
    return _as_json(ast.literal_eval(node))


def _as_json(value: object) -> JsonObject | list | str | float | None:
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError("expected a value that JSON has")
