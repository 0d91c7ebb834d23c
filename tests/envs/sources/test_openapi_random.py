"""Random documents: each loads, is checked and answers, or is refused with an error of ours."""

import json
import random
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.argument_check import check_arguments
from envs.endpoints import HttpEndpoint
from envs.errors import DataFileError
from envs.remote.http_request import RequestParts, Signature
from envs.sources.openapi.options import RealApi
from envs.sources.openapi.tool_set import real_tool_set, simulated_tool_set
from envs.tools import JsonObject, ToolSet
from tests.envs.sources.simulating import simulation
from tests.random_examples import examples

WORDS = st.sampled_from(["id", "name", "status", "tags", "a b", "ü", "self", "$top", "x[y]"])
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), FLOATS, st.text(max_size=6))
JUNK = st.recursive(
    SCALARS, lambda below: st.lists(below, max_size=3) | st.dictionaries(WORDS, below, max_size=3)
)
REFERENCES = st.sampled_from(
    ["A", "B", "C", "none", "A/properties/id", "a~1b", "A/allOf/0", "%C3%BC"]
).map(lambda name: {"$ref": f"#/components/schemas/{name}"})
TYPES = st.sampled_from(
    [
        "string",
        "integer",
        "number",
        "boolean",
        "array",
        "object",
        "null",
        "file",
        ["string", "null"],
    ]
)


def keywords(below: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES,
            "enum": st.lists(SCALARS, max_size=3),
            "const": SCALARS,
            "default": SCALARS,
            "nullable": st.booleans(),
            "format": st.sampled_from(["binary", "date", "uuid", "email"]),
            "pattern": st.sampled_from(["^a", "("]),
            "minimum": st.integers() | FLOATS,
            "exclusiveMinimum": st.booleans() | st.integers(),
            "properties": st.dictionaries(WORDS, below, max_size=3),
            "required": st.lists(WORDS, max_size=2),
            "additionalProperties": st.booleans() | below,
            "patternProperties": st.dictionaries(st.sampled_from(["^x", "("]), below, max_size=1),
            "items": below,
            "allOf": st.lists(below, max_size=2),
            "anyOf": st.lists(below, max_size=2),
            "oneOf": st.lists(below, max_size=2),
            "readOnly": st.booleans(),
            "discriminator": st.just({"propertyName": "name", "mapping": {"x": "A"}}),
            "description": st.text(max_size=5),
            "example": JUNK,
        },
    )


SCHEMAS = st.recursive(REFERENCES | st.booleans() | st.just({}), keywords, max_leaves=8)
WILD = st.one_of(*[SCHEMAS] * 9, JUNK)
PARAMETERS = st.fixed_dictionaries(
    {"name": WORDS, "in": st.sampled_from(["query"] * 6 + ["header", "cookie", "path", "body"])},
    optional={
        "schema": WILD,
        "content": st.dictionaries(
            st.sampled_from(["application/json", "text/x"]), JUNK, max_size=1
        ),
        "style": st.sampled_from(["form", "form", "deepObject", "pipeDelimited", "matrix"]),
        "explode": st.booleans(),
        "required": st.booleans(),
        "allowReserved": st.booleans(),
    },
)
KINDS = st.sampled_from(
    [
        *("application/json", "application/x-www-form-urlencoded", "multipart/form-data", "ü"),
        *("text/plain", "*/*", "image/png", "application/merge-patch+json", "a/json-patch+json"),
    ]
)
CONTENT = st.dictionaries(
    KINDS,
    st.fixed_dictionaries({"schema": WILD}, optional={"example": JUNK, "encoding": JUNK}),
    max_size=2,
)
OPERATIONS = st.fixed_dictionaries(
    {},
    optional={
        "operationId": st.text(max_size=5),
        "parameters": st.lists(PARAMETERS, max_size=3),
        "requestBody": st.fixed_dictionaries(
            {"content": CONTENT}, optional={"required": st.booleans()}
        ),
        "responses": st.dictionaries(
            st.sampled_from(["200", "201", "204", "2XX", "default", "404"]),
            st.fixed_dictionaries({}, optional={"content": CONTENT}),
            max_size=2,
        ),
        "security": st.lists(
            st.dictionaries(st.sampled_from(["key", "no"]), st.just([])), max_size=2
        ),
        "servers": st.just([{"url": "/v2"}]) | JUNK,
    },
)
PATHS = st.sampled_from(["/a", "/a/{id}", "/a/{id}/b", "/a/{id}/b/{name}", "/c", "a", "/{id}"])
HOLES = [{"name": name, "in": "path", "required": True, "schema": {}} for name in ("id", "name")]
METHODS = st.sampled_from(["get", "put", "post", "patch", "delete", "head", "options", "trace"])
DOCUMENTS = st.fixed_dictionaries(
    {
        "openapi": st.sampled_from(["3.0.3", "3.1.0"]),
        "paths": st.dictionaries(
            PATHS,
            st.dictionaries(
                METHODS, st.one_of(*[OPERATIONS] * 9, JUNK), min_size=1, max_size=4
            ).map(lambda item: {**item, "parameters": HOLES}),
            min_size=1,
            max_size=4,
        ),
        "components": st.fixed_dictionaries(
            {
                "schemas": st.dictionaries(
                    st.sampled_from(["A", "B", "C", "a/b", "ü"]), WILD, max_size=4
                ),
                "securitySchemes": st.just({"key": {"type": "apiKey", "in": "query", "name": "k"}}),
            }
        ),
    },
)
API = RealApi(base_url="http://h.local/v1", token_variable="T")


@given(DOCUMENTS, st.randoms(use_true_random=False))
@settings(
    max_examples=examples(100),
    deadline=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)
def test_a_random_document_is_served_or_refused(document: dict, rng: random.Random) -> None:
    text = json.dumps(document)
    try:
        simulated = simulated_tool_set(text)
    except DataFileError:
        simulated = None
    if simulated is not None:
        answer_all(simulated, rng)
    try:
        real = real_tool_set(text, API)
    except DataFileError:
        return
    request_all(real, rng)


def answer_all(tool_set: ToolSet, rng: random.Random) -> None:
    call = simulation(tool_set)  # an exception that is no ApiError fails the test
    for _ in range(3):
        for tool in tool_set.tools:
            arguments = drawn(tool.parameters, rng, 4)
            assert isinstance(arguments, dict)
            if check_arguments(tool, arguments) is None:
                json.dumps(call(tool.name, **arguments))


def request_all(tool_set: ToolSet, rng: random.Random) -> None:
    assert isinstance(tool_set.endpoint, HttpEndpoint)
    client = httpx.AsyncClient()
    for tool, operation in zip(tool_set.tools, tool_set.endpoint.operations, strict=True):
        arguments = drawn(tool.parameters, rng, 4)
        assert isinstance(arguments, dict)
        if check_arguments(tool, arguments) is not None:
            continue
        try:
            RequestParts(operation, arguments).request(client, API.base_url, Signature()).read()
        except ValueError:
            continue  # told to the policy as a mistake of its own


def drawn(schema: Any, rng: random.Random, depth: int) -> Any:
    """Return a value that the schema may allow; an object has its required fields, and others."""
    if not isinstance(schema, dict) or depth == 0:
        return rng.choice([None, True, 3, 2.0, "x", "", [], {}, [1, "a"], {"k": [None]}])
    if schema.get("enum"):
        return rng.choice(schema["enum"])
    kinds = schema.get("type", rng.choice(["string", "object", "array", "integer"]))
    kind = rng.choice(kinds) if isinstance(kinds, list) else kinds
    if kind == "object":
        properties: JsonObject = schema.get("properties", {})
        names = [n for n in properties if n in schema.get("required", []) or rng.random() < 0.6]
        made = {name: drawn(properties[name], rng, depth - 1) for name in names}
        return made | ({"other": 1} if rng.random() < 0.2 else {})
    if kind == "array":
        return [drawn(schema.get("items", {}), rng, depth - 1) for _ in range(rng.randint(0, 2))]
    values = {"integer": [0, -1, 2.0, 10**30], "number": [0.5, 3], "boolean": [True, False]}
    return rng.choice(
        values.get(kind, ["", "x", "a/b", "ü", "..", "1"] if kind == "string" else [None])
    )
