"""Tool sets from OpenAPI documents: what the policy is told, and how the simulation behaves."""

import json
import random
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.endpoints import HttpEndpoint, HttpOperation, TokenCredential
from envs.errors import DataFileError
from envs.sources.openapi.options import RealApi
from envs.sources.openapi.tool_set import real_tool_set, simulated_tool_set
from envs.tools import JsonObject, ToolSet
from tests.envs.sources.simulating import Calls, simulation
from tests.random_examples import examples

HERE = Path(__file__).resolve().parent
LIBRARY = (HERE.parent / "documents" / "library.json").read_text(encoding="utf-8")


@pytest.fixture
def library() -> Calls:
    return simulation(simulated_tool_set(LIBRARY))


def parameters(tool_set: ToolSet, name: str) -> JsonObject:
    tool = tool_set.find(name)
    assert tool is not None
    return tool.parameters


# What the policy is told


def test_names_can_be_written_and_are_different() -> None:
    names = [tool.name for tool in simulated_tool_set(LIBRARY).tools]
    assert names == [
        "list_books",
        "addBook",
        "getBook",
        "addBook_2",
        "changeBook",
        "listLoans",
        "lend",
        "delete_books_book_id_loans_loan_id",
        "getReader",
        "setTags",
    ]


def test_arguments_come_from_parameters_and_bodies() -> None:
    tool_set = simulated_tool_set(LIBRARY)
    assert parameters(tool_set, "list_books") == {
        "type": "object",
        "properties": {
            "limit": {"type": "integer", "minimum": 1},
            "genre": {"type": "string", "enum": ["novel", "essay", "poem"]},
        },
        "required": [],
        "additionalProperties": False,
    }
    add = parameters(tool_set, "addBook")
    assert add["required"] == ["title"]
    assert isinstance(add["properties"], dict)
    assert add["properties"]["title"] == {"type": "string", "description": "As on its cover."}
    assert parameters(tool_set, "lend")["required"] == ["book_id", "reader", "book_id_in_body"]
    assert parameters(tool_set, "setTags")["properties"] == {
        "body": {"type": "array", "items": {"type": "string"}}
    }
    get_book = parameters(tool_set, "getBook")["properties"]
    assert get_book == {"book_id": {"type": "integer", "description": "Number of the book."}}


def test_a_schema_that_contains_itself_ends() -> None:
    text = json.dumps(simulated_tool_set(LIBRARY).tools[1].parameters)
    assert 2 <= text.count("sequel_to") < 12


def test_yaml_reads_like_json() -> None:
    text = yaml.safe_dump(json.loads(LIBRARY), sort_keys=False).replace("'204'", "204")
    assert "204:" in text  # a number as a key, as people write it
    assert simulated_tool_set(text) == simulated_tool_set(LIBRARY)


def test_operations_are_chosen_by_id_or_path() -> None:
    chosen = simulated_tool_set(LIBRARY, operations=["lend", "GET /books/{book_id}"])
    assert [tool.name for tool in chosen.tools] == ["lend", "getBook"]
    with pytest.raises(DataFileError, match=r"found 'borrow'.*getReader"):
        simulated_tool_set(LIBRARY, operations=["borrow"])


def changed(path: list[str], value: object) -> str:
    document = json.loads(LIBRARY)
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return json.dumps(document)


BODY = ["paths", "/tags", "put", "requestBody", "content"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: invalid JSON"),
        ('{"openapi": NaN}', "numbers that JSON can write, found NaN"),
        ("a: [", "line 2: invalid YAML"),
        ("openapi: 3.0.0\nx: !!binary aGk=", "line 2: invalid YAML"),
        ("openapi: 3.0.0\nx: !!python/name:os.system", "line 2: invalid YAML"),
        ("[]", "no object at the top level"),
        (changed(["openapi"], "2.0"), "expected OpenAPI 3.0 or 3.1, found 2.0"),
        (changed(["openapi"], "3.2.0"), "expected OpenAPI 3.0 or 3.1, found 3.2.0"),
        (changed(["paths"], {}), "at least one operation"),
        (
            changed(["paths"], {"/x": {"get": {"parameters": [{"$ref": "other.yaml#/p"}]}}}),
            "found none: .*'other.yaml#/p': bundle the document",
        ),
    ],
)
def test_a_document_that_cannot_be_used_is_explained(text: str, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        simulated_tool_set(text)


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        (changed(BODY, {"image/png": {}}), "setTags", "PUT /tags: .* found image/png"),
        (
            changed([*BODY, "application/json", "schema"], {"$ref": "http://host/x.json"}),
            "setTags",
            "'http://host/x.json': bundle the document",
        ),
        (
            changed([*BODY, "application/json", "schema"], {"$ref": "#/components/none"}),
            "setTags",
            "'#/components/none' has no target",
        ),
        (
            changed(["components", "schemas", "Genre"], {"$ref": "#/components/schemas/Genre"}),
            "list_books",
            "a circle",
        ),
        (
            changed(["paths", "/books/{book_id}", "parameters"], []),
            "getBook",
            "GET /books/{book_id}: expected a path parameter 'book_id'",
        ),
        (changed(["paths", "/tags", "put"], 7), "PUT /tags", "expected an object, found a number"),
        (changed(["paths", "/tags", "trace"], {}), "TRACE /tags", "another method than TRACE"),
        (changed(["paths", "/tags"], {"$ref": "tags.yaml"}), "/tags", "bundle the document"),
    ],
)
def test_an_operation_that_cannot_be_served_is_left_out_by_name(
    text: str, name: str, reason: str
) -> None:
    tool_set = simulated_tool_set(text)
    assert len(tool_set.tools) >= 5
    assert name not in [tool.name for tool in tool_set.tools]
    assert re.search(reason, next(one.why for one in tool_set.left_out if one.name == name))
    with pytest.raises(DataFileError, match=reason):
        simulated_tool_set(text, operations=[name])


def test_aliases_that_multiply_meet_a_budget() -> None:
    lines = ["a0: &a0 {type: object, properties: {x: {type: string}, y: {type: string}}}"]
    for level in range(1, 30):
        below = f"{{$ref: '#/b/a{level - 1}'}}"
        lines.append(f"a{level}: {{anyOf: [{', '.join([below] * 9)}]}}")
    schemas = "\n".join(f"  {line}" for line in lines)
    text = (
        "openapi: 3.0.1\nb:\n" + schemas + "\npaths: {/x: {get: {parameters: [{name: p, in: query, "
        "schema: {$ref: '#/b/a29'}}]}}}"
    )
    tool_set = simulated_tool_set(text)  # in the time of a test, and of a size that can be read
    assert 9 < len(json.dumps(tool_set.tools[0].parameters)) < 2_000_000


JUNK = (None, 3, "x", [], {}, True, [{}], {"$ref": "#/x"}, {"$ref": 5}, {"type": 7}, {"enum": 3})


@given(st.randoms(use_true_random=False), st.sampled_from(JUNK))
@settings(max_examples=examples(150))
def test_a_damaged_document_is_read_or_explained(rng: random.Random, junk: object) -> None:
    document = json.loads(LIBRARY)
    node, depth = document, rng.randint(1, 9)
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        depth -= 1
        if depth == 0 or not isinstance(node[key], dict | list) or not node[key]:
            break
        node = node[key]
    node[key] = junk
    try:
        tool_set = simulated_tool_set(json.dumps(document))
    except DataFileError:
        return
    assert len(tool_set.tools) == len(tool_set.functions)


# The simulation


def test_a_collection_starts_with_the_documents_examples(library: Calls) -> None:
    assert library("list_books")["total"] == 2  # type: ignore[index]
    assert library("getBook", book_id=3)["title"] == "The Ferry"  # type: ignore[index]
    assert library("list_books", genre="essay") == {
        "total": 1,
        "books": [{"id": 8, "title": "On Rain", "genre": "essay", "copies": 1}],
    }


def test_what_is_written_can_be_read(library: Calls) -> None:
    made = library("addBook", title="New", genre="poem")
    assert isinstance(made, dict)
    assert (made["id"], made["title"], made["genre"], made["copies"]) == (9, "New", "poem", 1)
    assert library("getBook", book_id=9) == made
    library("changeBook", book_id=9, copies=5)
    assert library("getBook", book_id=9) == {**made, "copies": 5}
    assert library("addBook_2", book_id=9) == {"status": 204}
    assert library("getBook", book_id=9) == "404 Not Found: /books has no '9'"
    assert library("list_books", limit=1)["total"] == 2  # type: ignore[index]


def test_what_belongs_to_an_item_needs_the_item(library: Calls) -> None:
    assert library("listLoans", book_id=99) == "404 Not Found: /books has no '99'"
    loan = library("lend", book_id=3, reader="ada", book_id_in_body=3)
    assert isinstance(loan, dict)
    assert (loan["reader"], loan["book_id"]) == ("ada", 3)
    assert loan in library("listLoans", book_id=3)  # type: ignore[operator]
    assert loan not in library("listLoans", book_id=8)  # type: ignore[operator]
    library("delete_books_book_id_loans_loan_id", book_id=3, loan_id=loan["id"])
    assert loan not in library("listLoans", book_id=3)  # type: ignore[operator]
    new = library("addBook", title="Fresh")
    assert library("listLoans", book_id=new["id"]) == []  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "title: field required"),
        ({"title": 3}, "title: expected string"),
        ({"title": "x", "genre": "song"}, "genre: expected one of novel, essay, poem"),
        ({"title": "x", "copies": -1}, "copies: expected at least 0"),
        ({"title": "x", "colour": "red"}, "colour: no such argument"),
    ],
)
def test_wrong_arguments_are_unprocessable(
    library: Calls, arguments: JsonObject, message: str
) -> None:
    assert library("addBook", **arguments) == f"422 Unprocessable Entity: {message}"


def test_other_answers_are_examples_or_sampled_from_the_seed(library: Calls) -> None:
    example = {"reader": "ada", "mail": "ada@example.com", "fines": 1.5}
    assert library("getReader", reader="ada") == example
    drawn = library("getReader", reader="bob")
    assert isinstance(drawn, dict)
    assert drawn["reader"] == "bob"
    assert drawn["mail"].endswith("@example.com")
    assert library("getReader", reader="bob") == drawn
    tool_set = simulated_tool_set(LIBRARY)
    assert simulation(tool_set, seed=1)("getReader", reader="bob") == drawn
    assert simulation(tool_set, seed=2)("getReader", reader="bob") == drawn
    other = simulated_tool_set(LIBRARY, seed=2)
    assert simulation(other)("getReader", reader="bob") != drawn


# The real API


def test_a_base_url_makes_it_the_real_api() -> None:
    api = RealApi(
        base_url="https://api.example/v1",
        allowed_hosts=("cdn.example",),
        token_variable="LIBRARY_KEY",
    )
    tool_set = real_tool_set(LIBRARY, api, operations=["lend", "setTags", "list books"])
    endpoint = tool_set.endpoint
    assert isinstance(endpoint, HttpEndpoint)
    assert endpoint.allowed_hosts == ("api.example:443", "cdn.example")
    key = TokenCredential(variable="LIBRARY_KEY", place="query", name="api_key", prefix="")
    assert endpoint.credentials == {"key": key}
    lend, tags, books = endpoint.operations
    assert (lend.method, lend.path) == ("post", "/books/{book_id}/loans")
    assert places(lend) == {
        "book_id": ("path", "book_id"),
        "reader": ("field", "reader"),
        "book_id_in_body": ("field", "book_id"),
    }
    assert places(tags) == {"body": ("body", "body")}
    assert places(books) == {"limit": ("query", "limit"), "genre": ("query", "genre")}
    assert not tool_set.sandboxed


def places(operation: HttpOperation) -> dict[str, tuple[str, str]]:
    return {name: (wire.place, wire.name) for name, wire in operation.arguments.items()}


@pytest.mark.parametrize("base_url", ["api.example", "ftp://host", "http://u:p@host", "http://"])
def test_a_base_url_that_is_none_is_named(base_url: str) -> None:
    with pytest.raises(DataFileError, match="base_url"):
        real_tool_set(LIBRARY, RealApi(base_url=base_url))


def movie_document() -> str:
    """Return a document in the style of a large public API: no server, ids as METHOD_path.

    Its arguments are of every type, in paths and queries, and an example answers each operation.
    """
    types = {"movie_id": "integer", "query": "string", "score": "number", "adult": "boolean"}
    parameters = {
        name: {"name": name, "in": "query", "required": True, "schema": {"type": kind}}
        for name, kind in types.items()
    }
    parameters["movie_id"]["in"] = "path"
    window = {"type": "string", "enum": ["day", "week"]}
    parameters["window"] = {"name": "window", "in": "path", "required": True, "schema": window}
    paths = {
        "/movie/{movie_id}": ["movie_id"],
        "/movie/{movie_id}/credits": ["movie_id", "adult"],
        "/search/movie": ["query", "score", "adult"],
        "/trending/{window}": ["window"],
        "/configuration": [],
    }
    answer = {"application/json": {"example": {"id": 550, "title": "Fight Club"}}}
    operations = {
        path: {
            "get": {
                "operationId": "GET_" + path.strip("/").translate(str.maketrans("/", "-", "{}")),
                "parameters": [parameters[name] for name in names],
                "responses": {"200": {"description": "Found.", "content": answer}},
            }
        }
        for path, names in paths.items()
    }
    info = {"title": "Films", "version": "3"}
    return json.dumps({"openapi": "3.0.0", "info": info, "paths": operations})


def test_every_operation_of_a_document_answers_arguments_of_its_schema() -> None:
    tool_set = simulated_tool_set(movie_document())
    assert len({tool.name for tool in tool_set.tools}) == len(tool_set.tools) == 5
    call = simulation(tool_set)
    values = {"integer": 7, "string": "x", "number": 1.5, "boolean": True}
    for tool in tool_set.tools:
        required, properties = tool.parameters["required"], tool.parameters["properties"]
        assert isinstance(required, list)
        assert isinstance(properties, dict)
        arguments = {}
        for name in required:
            schema = properties[str(name)]
            assert isinstance(schema, dict)
            options = schema.get("enum")
            default = values[str(schema["type"])]
            arguments[str(name)] = options[0] if isinstance(options, list) else default
        assert isinstance(call(tool.name, **arguments), dict), tool.name
    assert call("GET_movie-movie_id", movie_id=550)["title"] == "Fight Club"  # type: ignore[index]
