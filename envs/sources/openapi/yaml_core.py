"""YAML 1.2 text with JSON's types, as OpenAPI requires it.

The YAML library reads version 1.1, where `NO`, `on` and `8:30` are a truth value, another one, and
510. Here the core schema of version 1.2 says what a plain word is. A number that JSON would write
in another way (`007`, `1.10`, `0x1F`) keeps its text: `written_as` returns it, for schemas that
expect text.
"""

import math
import re
from typing import Any

import yaml

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_KEPT = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
_TAG = "tag:yaml.org,2002:"
_MOST_DIGITS = 400
_MOST_DEEP = 200


class _WrittenInt(int):
    written: str


class _WrittenFloat(float):
    written: str


def written_as(value: Any) -> str:
    """Return the text that a scalar had in its document; for others, their text in JSON."""
    if isinstance(value, _WrittenInt | _WrittenFloat):
        return value.written
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""A wheel of the library reads ten times faster than its Python source."""


class _CoreLoader(_Base):
    """Keys are text, as they are written; tags beyond JSON's types are refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        self.flatten_mapping(node)
        return {
            self._key(key): self.construct_object(value, deep=deep) for key, value in node.value
        }

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Take over what merge keys name; each key once, or merges of merges would double it."""
        super().flatten_mapping(node)
        last = {
            key.value if isinstance(key, yaml.ScalarNode) else id(key): (key, value)
            for key, value in node.value
        }
        if len(last) < len(node.value):
            node.value = list(last.values())

    def _key(self, node: yaml.Node) -> str:
        if isinstance(node, yaml.ScalarNode):
            return node.value
        raise yaml.constructor.ConstructorError(
            "while reading a mapping", node.start_mark, "expected a word as a key", node.start_mark
        )


def load_yaml(text: str) -> Any:
    """Return the only document in `text`. Raises yaml.YAMLError, ValueError, RecursionError."""
    _check_depth(text)
    return yaml.load(text, _CoreLoader)


def _check_depth(text: str) -> None:
    """Raise ValueError for values that are nested too deep.

    The library's composer written in C calls itself for each level, without a limit: it would end
    the process. Its parser does not.
    """
    depth = 0
    for event in yaml.parse(text, _Base):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MOST_DEEP:
                line = event.start_mark.line + 1
                raise ValueError(f"line {line}: found values nested more than {_MOST_DEEP} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _null(loader: _CoreLoader, node: yaml.ScalarNode) -> None:
    del loader, node


def _bool(loader: _CoreLoader, node: yaml.ScalarNode) -> bool:
    del loader
    return node.value.lower() == "true"


def _int(loader: _CoreLoader, node: yaml.ScalarNode) -> int | str:
    del loader
    text = node.value
    if len(text) > _MOST_DIGITS:
        return text
    base = {"0x": 16, "0o": 8}.get(text[:2], 10)
    number = _WrittenInt(text[2:] if base != 10 else text, base)
    number.written = text
    return int(number) if str(int(number)) == text else number


def _float(loader: _CoreLoader, node: yaml.ScalarNode) -> float | str:
    del loader
    number = _WrittenFloat(node.value)
    number.written = node.value
    if not math.isfinite(number):
        return node.value
    return float(number) if repr(float(number)) == node.value else number


_CoreLoader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("bool", _BOOL, "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", _NULL, "~nN"),
    ("merge", re.compile("<<"), "<"),
):
    _exact = re.compile(f"^(?:{_pattern.pattern})$")
    _CoreLoader.add_implicit_resolver(f"{_TAG}{_name}", _exact, [*_first])
_CoreLoader.add_implicit_resolver(f"{_TAG}null", re.compile("^$"), [""])
_CoreLoader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in _KEPT
}
for _name, _construct in (("null", _null), ("bool", _bool), ("int", _int), ("float", _float)):
    _CoreLoader.add_constructor(f"{_TAG}{_name}", _construct)
