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
        {"required": [3], "additionalProperties": "string"},
        {"properties": {"name": {"$ref": "other.json#/A"}}},
        {"properties": {"name": {"$ref": "#/$defs/missing"}}},
        {"properties": {"name": {"$ref": "#/properties/name"}}},
        {"properties": {"name": {"minimum": "1", "multipleOf": 0, "enum": "a", "pattern": 3}}},
        {"properties": {"name": {"type": "str", "nullable": "yes"}}, "type": "dict", "$id": 3},
    ],
)
def test_senseless_schemas_allow_everything(schema: JsonObject) -> None:
    assert check({"name": 3}, schema) is None


RICH: JsonObject = {
    "type": "object",
    "$defs": {"point": {"type": "array", "prefixItems": [{"type": "number"}], "minItems": 1}},
    "properties": {
        "at": {"$ref": "#/$defs/point"},
        "old": {"type": "array", "items": [{"type": "integer"}, {"type": "string"}]},
        "many": {"type": "integer", "minimum": 1, "maximum": 9},
        "rate": {"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.1},
        "older": {"type": "number", "minimum": 0, "exclusiveMinimum": True},
        "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
        "slow": {"type": "string", "pattern": "^(a|aa)+$"},
        "mode": {"const": "fast"},
        "maybe": {"type": "integer", "nullable": True},
        "either": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
        "limits": {"type": "object", "additionalProperties": {"type": "integer"}},
        "few": {"type": "array", "maxItems": 2, "uniqueItems": True},
    },
    "patternProperties": {"^x-": {"type": "string"}},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "arguments",
    [
        {"at": [1.5], "old": [1, "a"], "many": 1, "rate": 0.3, "older": 0.1, "code": "AB"},
        {"mode": "fast", "maybe": None, "either": None, "limits": {"a": 1}, "few": [1, 2]},
        {"x-color": "red"},
        {"slow": "a" * 60 + "!"},  # nobody waits for its end
        {"many": 3.0},
    ],
)
def test_right_arguments_pass_a_rich_schema(arguments: JsonObject) -> None:
    assert check(arguments, RICH) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"at": ["x"]}, "argument 'at[0]': expected number, found \"x\""),
        ({"at": []}, "argument 'at': expected at least 1 items, found []"),
        ({"old": ["a"]}, "argument 'old[0]': expected integer, found \"a\""),
        ({"many": 0}, "argument 'many': expected at least 1, found 0"),
        ({"rate": 0.35}, "argument 'rate': expected a multiple of 0.1, found 0.35"),
        ({"rate": 0}, "argument 'rate': expected more than 0, found 0"),
        ({"older": 0}, "argument 'older': expected more than 0, found 0"),
        ({"code": "abc"}, "argument 'code': expected text that matches ^[A-Z]{2}$, found \"abc\""),
        ({"mode": "slow"}, 'argument \'mode\': expected "fast", found "slow"'),
        ({"either": 0}, "argument 'either': expected at least 1, found 0"),
        ({"limits": {"a": "x"}}, "argument 'limits.a': expected integer, found \"x\""),
        ({"few": [1, 1]}, "argument 'few': expected what uniqueItems of its schema says, found "),
        ({"x-color": 3}, "argument 'x-color': expected string, found 3"),
        ({"y": 3}, "unknown argument 'y'; known: at, old, many, rate, older, code, slow, mode,"),
    ],
)
def test_wrong_arguments_of_a_rich_schema_are_named(arguments: JsonObject, sentence: str) -> None:
    said = check(arguments, RICH)
    assert said is not None
    assert said.startswith(sentence)


def test_long_values_are_shortened_in_the_sentence() -> None:
    sentence = check({"name": ["x" * 10_000]})
    assert sentence is not None
    assert len(sentence) < 200
