"""What reading a source may cost, and values that JSON can carry.

A source may be written to hang or end the process that only reads it. So everything that depends on
it is counted, and what is over a limit is an error that names the place.
"""

import ast
import json
import math

from pydantic import JsonValue

from envs.errors import DataFileError

SOURCE_BYTES = 2**20
"""Most bytes of one source."""
_NODES = 200_000
"""Most parts of the syntax tree of one source."""
_PARTS = 50_000
"""Most parts of the schemas of one set of tools."""
_SCHEMA_BYTES = 2**18
"""Most bytes of the schema and the texts of one tool."""
_VALUE_NODES = 2_000
"""Most parts of a default, or of another literal."""
_DEEP_ERRORS = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)


class NotLiteral(Exception):
    """An expression whose value only running the source could tell, or that JSON cannot carry."""


class Budget:
    """Counts parts of schemas, over all tools of one set."""

    def __init__(self) -> None:
        self._left = _PARTS

    def spend(self, parts: int = 1) -> None:
        """Count `parts`. Raises DataFileError if there were too many."""
        self._left -= parts
        if self._left < 0:
            raise DataFileError(
                f"expected annotations of at most {_PARTS} parts in all tools together, found "
                "more: some of them stand for others many times over; write them more simply"
            )


def check_size(source: str) -> None:
    """Raise DataFileError for a source that is too long to be read."""
    if len(source) > SOURCE_BYTES or len(source.encode("utf-8", "surrogatepass")) > SOURCE_BYTES:
        raise DataFileError(
            f"expected Python source of at most {SOURCE_BYTES} bytes, found {len(source)} "
            "characters: put data into files beside it"
        )


def check_tree(tree: ast.Module) -> None:
    """Raise DataFileError, with the line, for a source of too many parts."""
    line = 1
    for number, node in enumerate(ast.walk(tree)):
        line = getattr(node, "lineno", line)
        if number > _NODES:
            raise DataFileError(
                f"line {line}: expected source of at most {_NODES} parts, found more: put data "
                "into files beside it"
            )


def check_tool(where: str, *parts: JsonValue) -> None:
    """Raise DataFileError if a tool's texts and schema cannot be written as JSON in UTF-8."""
    try:
        size = sum(len(json.dumps(p, ensure_ascii=False, allow_nan=False).encode()) for p in parts)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataFileError(
            f"{where}: expected texts, defaults and options that JSON can carry: {error}"
        ) from error
    if size > _SCHEMA_BYTES:
        raise DataFileError(
            f"{where}: expected documentation, defaults and options of at most {_SCHEMA_BYTES} "
            f"bytes, found {size}: a model would have to read them in every episode"
        )


def literal(node: ast.expr) -> JsonValue:
    """Return the value of an expression. Raises NotLiteral where JSON has no such value.

    A tuple is a list, as in JSON.
    """
    for number, _ in enumerate(ast.walk(node)):
        if number > _VALUE_NODES:
            raise NotLiteral
    try:
        return _plain(ast.literal_eval(node))
    except _DEEP_ERRORS as error:
        raise NotLiteral from error


def shown(node: ast.expr) -> str:
    """Return the text of an expression, for messages."""
    try:
        text = ast.unparse(node)
    except (RecursionError, ValueError):
        return "a deep expression"
    return told(text if len(text) <= 200 else f"{text[:200]}...")


def told(text: str) -> str:
    """Return text without halves of characters, which no UTF-8 can carry."""
    return text.encode("utf-8", "replace").decode()


def _plain(value: object) -> JsonValue:
    if isinstance(value, bool | None):
        return value
    if isinstance(value, str):
        value.encode()
        return value
    if isinstance(value, int):
        str(value)  # more digits than JSON's text may have
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    raise NotLiteral
