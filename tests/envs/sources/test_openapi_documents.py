"""What public documents are made of: YAML words, references, merged schemas, security, servers."""

import json

import pytest

from envs.sources.openapi.tool_set import simulated_tool_set
from tests.envs.sources.documents import document, parameters, posting, properties

# YAML


def test_words_of_yaml_are_what_version_1_2_says() -> None:
    text = """
openapi: 3.0.2
paths:
  /orders:
    get:
      parameters:
      - {in: query, name: country, schema: {type: string, enum: [SE, NO, no, Yes, y]}}
      - {in: query, name: light, schema: {type: string, enum: [on, off], default: on}}
      - {in: query, name: opens, schema: {type: string, enum: [8:30, 2001-01-01, 1_000]}}
      - {in: query, name: code, schema: {type: string, enum: [007, 0x1F, 1e3, true, 12, 1.10]}}
      - {in: query, name: level, schema: {type: number, minimum: .5, maximum: 1e3}}
      - {in: query, name: size, schema: {type: integer, enum: [0x1F, '7', 8]}}
      - {in: query, name: off, schema: {type: boolean, default: false}}
      responses: {200: {description: ok}, 404: {description: none}}
"""
    found = properties(simulated_tool_set(text))
    listed = {name: schema.get("enum") for name, schema in found.items()}
    assert listed == {
        "country": ["SE", "NO", "no", "Yes", "y"],
        "light": ["on", "off"],
        "opens": ["8:30", "2001-01-01", "1_000"],
        "code": ["007", "0x1F", "1e3", "true", "12", "1.10"],
        "level": None,
        "size": [31, 7, 8],
        "off": None,
    }
    assert found["light"]["default"] == "on"
    assert found["level"] == {"type": "number", "minimum": 0.5, "maximum": 1000.0}


def test_anchors_merges_and_a_byte_order_mark_are_read() -> None:
    text = """\ufeff
openapi: 3.1.0
x-page: &page {in: query, schema: {type: integer}}
paths:
  x-note: not a path
  /a: {get: {parameters: [{<<: *page, name: page}]}}
"""
    assert properties(simulated_tool_set(text)) == {"page": {"type": "integer"}}


# References


def test_references_are_json_pointers() -> None:
    team = {"schema": {"$ref": "#/components/schemas/a~1b%25"}}
    text = document(
        {
            "/users/{id}": {
                "get": {
                    "parameters": [
                        {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
                    ]
                }
            },
            "/by/{id}": {
                "get": {"parameters": [{"$ref": "#/paths/~1users~1%7Bid%7D/get/parameters/0"}]}
            },
            "/team": {"post": {"requestBody": {"$ref": "#/components/requestBodies/New%20Team"}}},
            "/also": {"$ref": "#/paths/~1team"},
            "/odd": {"$ref": "#/paths/~1team", "get": {"summary": "Beside."}},
        },
        components={
            "requestBodies": {"New Team": {"content": {"application/json": team}}},
            "schemas": {"a/b%": {"properties": {"name": {"type": "string"}}}},
        },
    )
    tool_set = simulated_tool_set(text)
    assert not tool_set.left_out
    assert [tool.name for tool in tool_set.tools] == [
        *("get_users_id", "get_by_id", "post_team", "post_also", "get_odd", "post_odd"),
    ]
    assert list(properties(tool_set, 1)) == ["id"]
    assert properties(tool_set, 2) == properties(tool_set, 3) == {"name": {"type": "string"}}


def test_words_beside_a_reference_count_in_3_1_alone() -> None:
    schema = {
        "properties": {
            "source": {"$ref": "#/components/schemas/Id", "description": "Pays."},
            "target": {"$ref": "#/components/schemas/Id", "default": "cash", "maxLength": 9},
        }
    }
    named = {"Id": {"type": "string", "description": "An id.", "maxLength": 20}}
    new = properties(simulated_tool_set(posting(schema, "3.1.0", **named)))
    assert new["source"] == {"type": "string", "description": "Pays.", "maxLength": 20}
    assert new["target"] == {**named["Id"], "default": "cash", "maxLength": 9}
    old = properties(simulated_tool_set(posting(schema, "3.0.3", **named)))
    assert old["source"] == old["target"] == named["Id"]


# Schemas


def test_all_of_is_one_schema_as_narrow_as_its_parts() -> None:
    named = {
        "Pet": {
            "properties": {
                "name": {"type": "string"},
                "kind": {"type": "string", "description": "K"},
            }
        },
        "New": {
            "allOf": [{"$ref": "#/components/schemas/Pet"}, {"required": ["name", "breed"]}],
            "properties": {"breed": {"type": "string"}},
        },
    }
    schema = {
        "allOf": [
            {"$ref": "#/components/schemas/New"},
            {"required": ["id", "gone"], "properties": {"id": {"type": "integer"}}},
            {"additionalProperties": False, "properties": {"kind": {"enum": ["dog"]}}},
        ]
    }
    found = parameters(simulated_tool_set(posting(schema, **named)))
    assert found["required"] == ["name", "breed", "id"]
    assert list(found["properties"]) == ["name", "kind", "breed", "id"]
    assert found["properties"]["kind"] == {
        "type": "string",
        "description": "K",
        "enum": ["dog"],
    }


@pytest.mark.parametrize(
    ("schema", "version", "plain"),
    [
        (
            {"type": "string", "nullable": True, "enum": ["a"]},
            "3.0.0",
            {"type": ["string", "null"], "enum": ["a", None]},
        ),
        ({"nullable": True, "allOf": [{"type": "object"}]}, "3.0.0", {"type": ["object", "null"]}),
        ({"type": ["integer", "null"]}, "3.1.0", {"type": ["integer", "null"]}),
        (
            {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            "3.1.0",
            {"type": ["integer", "null"], "default": None},
        ),
        (
            {"oneOf": [{"type": "integer"}, {"type": "string"}]},
            "3.1.0",
            {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        ),
        ({"const": "page"}, "3.1.0", {"enum": ["page"]}),
        (
            {"type": "integer", "minimum": 0, "exclusiveMinimum": True},
            "3.0.0",
            {"type": "integer", "exclusiveMinimum": 0},
        ),
        (
            {"type": "integer", "exclusiveMinimum": 0},
            "3.1.0",
            {"type": "integer", "exclusiveMinimum": 0},
        ),
        (
            {"type": "string", "example": "2026-01-31"},
            "3.0.0",
            {"type": "string", "examples": ["2026-01-31"]},
        ),
        (
            {"patternProperties": {"^x-": {"type": "string"}, "(": {}}},
            "3.1.0",
            {"patternProperties": {"^x-": {"type": "string"}}},
        ),
        (
            {"prefixItems": [{"type": "string"}]},
            "3.1.0",
            {"prefixItems": [{"type": "string"}], "type": "array"},
        ),
        ({"type": "file"}, "3.0.0", {}),
        (True, "3.1.0", {}),
    ],
)
def test_keywords_of_both_versions_become_one(schema: object, version: str, plain: object) -> None:
    tool_set = simulated_tool_set(posting({"properties": {"f": schema}}, version))
    assert properties(tool_set) == {"f": plain}


def test_fields_that_only_the_other_side_has_are_left_out() -> None:
    inner = {
        "properties": {"made": {"$ref": "#/components/schemas/Stamp"}, "key": {"writeOnly": True}}
    }
    schema = {"required": ["made"], "properties": {"made": {"readOnly": True}, "inner": inner}}
    tool_set = simulated_tool_set(posting(schema, Stamp={"type": "string", "readOnly": True}))
    assert parameters(tool_set)["required"] == []
    assert properties(tool_set) == {
        "inner": {"type": "object", "properties": {"key": {}}, "required": []}
    }


def test_a_schema_that_others_inherit_from_offers_their_fields() -> None:
    named = {
        "Pet": {
            "required": ["kind"],
            "properties": {"kind": {"type": "string"}},
            "discriminator": {"propertyName": "kind", "mapping": {"d": "#/components/schemas/Dog"}},
        },
        "Dog": {"allOf": [{"$ref": "#/components/schemas/Pet"}, {"properties": {"barks": {}}}]},
        "Cat": {"allOf": [{"$ref": "#/components/schemas/Pet"}, {"properties": {"lives": {}}}]},
    }
    body = properties(simulated_tool_set(posting({"$ref": "#/components/schemas/Pet"}, **named)))
    dog, cat = body["body"]["anyOf"]
    assert list(dog["properties"]) == ["kind", "barks"]
    assert dog["properties"]["kind"]["enum"] == ["d"]
    assert cat["properties"]["kind"]["enum"] == ["Cat"]
    child = properties(simulated_tool_set(posting({"$ref": "#/components/schemas/Dog"}, **named)))
    assert list(child) == ["kind", "barks"]


def test_a_schema_that_contains_itself_many_times_is_cut_where_it_gets_large() -> None:
    wide = {f"f{number}": {"$ref": "#/components/schemas/Wide"} for number in range(20)}
    tool_set = simulated_tool_set(
        posting({"$ref": "#/components/schemas/Wide"}, Wide={"properties": wide})
    )
    assert len(json.dumps(parameters(tool_set))) < 2_000_000
    assert list(properties(tool_set)) == list(wide)
