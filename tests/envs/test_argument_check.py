"""Arguments against schemas, sloppy ones included."""

import pytest

from envs.argument_check import check_arguments
from envs.tools import JsonObject, ToolSpec

PERSON: JsonObject = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "size": {"type": ["number", "null"]},
        "kind": {"type": "string", "enum": ["one", "two"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "home": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "sloppy": {"type": "str", "format": "whatever", "default": 3},
        "broken": "not a schema",
    },
    "required": ["name"],
}


def check(arguments: JsonObject, schema: JsonObject = PERSON) -> str | None:
    return check_arguments(ToolSpec(name="tool", description="", parameters=schema), arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "Ada"},
        {"name": "Ada", "age": 3, "size": None, "kind": "one", "tags": [], "home": {"city": "x"}},
        {"name": "Ada", "age": 3.0, "size": 2.5},
        {"name": "Ada", "undocumented": {"anything": [1]}},
        {"name": "Ada", "sloppy": 3, "broken": [None]},
    ],
)
def test_right_arguments_pass(arguments: JsonObject) -> None:
    assert check(arguments) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "missing required argument 'name'"),
        ({"name": 3}, "argument 'name': expected string, found 3"),
        ({"name": "", "age": True}, "argument 'age': expected integer, found true"),
        ({"name": "", "age": 1.5}, "argument 'age': expected integer, found 1.5"),
        ({"name": "", "size": "x"}, "argument 'size': expected number or null, found \"x\""),
        (
            {"name": "", "kind": "six"},
            'argument \'kind\': expected one of "one", "two", found "six"',
        ),
        ({"name": "", "tags": ["a", 2]}, "argument 'tags[1]': expected string, found 2"),
        ({"name": "", "home": {}}, "missing required argument 'home.city'"),
        ({"name": "", "home": {"city": 1}}, "argument 'home.city': expected string, found 1"),
        ({"name": "", "home": {"city": "", "zip": 1}}, "unknown argument 'home.zip'; known: city"),
    ],
)
def test_wrong_arguments_are_named(arguments: JsonObject, sentence: str) -> None:
    assert check(arguments) == sentence


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"properties": None, "required": True},
        {"properties": ["name"], "required": "name"},
        {"required": [3], "additionalProperties": {"type": "text"}},
    ],
)
def test_senseless_schemas_allow_everything(schema: JsonObject) -> None:
    assert check({"name": 3}, schema) is None


def test_long_values_are_shortened_in_the_sentence() -> None:
    sentence = check({"name": ["x" * 10_000]})
    assert sentence is not None
    assert len(sentence) < 200
