"""The state of a simulated API: what is written is read, lists show it, fixtures start it."""

import ast
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from envs.errors import DataFileError
from envs.sources.openapi.simulation import source
from envs.sources.openapi.tool_set import simulated_tool_set
from tests.envs.sources.documents import document
from tests.envs.sources.simulating import Calls, simulation

PET = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "id": {"type": "integer"},
        "name": {"type": "string"},
        "status": {"type": "string", "nullable": True, "enum": ["available", "pending", "sold"]},
        "price": {"type": "number"},
        "category": {
            "type": "object",
            "properties": {"id": {"type": "integer", "nullable": True}},
        },
        "tags": {"type": "array", "items": {"type": "object"}},
    },
}
REF = {"$ref": "#/components/schemas/Pet"}
PETS = {"type": "array", "items": REF}
ID = {"name": "petId", "in": "path", "required": True, "schema": {"type": "integer"}}


def op(name: str, *queries: str, body: object = None, answer: object = None, **more: Any) -> dict:
    """Return an operation, with queries as `name:type`, and JSON schemas of its body and answer."""
    pairs = [query.partition(":")[::2] for query in queries]
    made: dict = {
        "operationId": name,
        "parameters": [
            {"name": key, "in": "query", "schema": {"type": kind or "string"}}
            for key, kind in pairs
        ],
    }
    kind = more.get("kind", "application/json")
    if body is not None:
        made["requestBody"] = {"required": True, "content": {kind: {"schema": body}}}
    if answer is not None:
        content = {"application/json": {"schema": answer}}
        made["responses"] = {"200": {"description": "ok", "content": content}}
    return made


SIZE = "limit:integer"
STORE = {
    "/pet": {
        "put": op("updatePet", body=REF, answer=REF),
        "post": op("addPet", body=REF, answer=REF),
        "delete": op("clearPets", "status"),
    },
    "/pet/findByStatus": {"get": op("findByStatus", "status", answer=PETS)},
    "/pets/search": {
        "get": op(
            "search", "tags", "min_price:number", "categoryId:integer", "limit:integer", answer=PETS
        )
    },
    "/pet/createWithList": {"post": op("addAll", body=PETS)},
    "/pet/{petId}": {
        "parameters": [ID],
        "get": op("getPet", answer=REF),
        "post": op("renamePet", "name", "status", answer=REF),
        "patch": op("mergePet", body=REF, kind="application/merge-patch+json", answer=REF),
        "delete": op("deletePet"),
    },
    "/pet/{petId}/steps": {
        "parameters": [ID],
        "get": op("getSteps", answer={"type": "object", "properties": {"done": {}}}),
        "put": op("setSteps", body={"type": "object", "properties": {"done": {}}}),
    },
}
ITEMS = [
    {"id": 1, "name": "Rex", "status": "sold", "price": 5, "category": {"id": 7}, "tags": ["big"]},
    {
        "id": 2,
        "name": "Max",
        "status": "available",
        "price": 9,
        "category": {"id": 8},
        "tags": [{"id": 1, "name": "big"}, {"id": 2, "name": "shy"}],
    },
]


@pytest.fixture
def store() -> Calls:
    return made(STORE, fixtures={"/pet": ITEMS})


def made(paths: dict, *, fixtures: object = None, seed: int = 0) -> Calls:
    text = document(paths, components={"schemas": {"Pet": PET}})
    given = json.dumps(fixtures) if fixtures is not None else ""
    return simulation(simulated_tool_set(text, fixtures=given, seed=seed))


def names(answer: object) -> list:
    assert isinstance(answer, list), answer
    return [item["name"] for item in answer]


def test_a_change_by_the_id_in_the_body_is_kept(store: Calls) -> None:
    store("updatePet", id=1, name="Kim", status="pending")
    pet: Any = store("getPet", petId=1)
    assert (pet["name"], pet["status"], pet["tags"]) == ("Kim", "pending", [])
    assert names(store("findByStatus", status="sold")) == []
    assert names(store("findByStatus", status="pending")) == ["Kim"]
    assert store("updatePet", id=9, name="x") == "404 Not Found: /pet has no '9'"


def test_lists_elsewhere_show_the_collection_and_filter_it(store: Calls) -> None:
    assert names(store("search")) == ["Rex", "Max"]
    assert names(store("search", tags="shy")) == ["Max"]
    assert names(store("search", tags="big")) == ["Rex", "Max"]
    assert names(store("search", min_price=6)) == ["Max"]
    assert names(store("search", categoryId=7)) == ["Rex"]
    assert names(store("search", limit=1)) == ["Rex"]
    store("addPet", name="New", status="sold")
    assert names(store("findByStatus", status="sold")) == ["Rex", "New"]
    store("deletePet", petId=1)
    assert names(store("findByStatus", status="sold")) == ["New"]
    store("clearPets", status="sold")
    assert names(store("search")) == ["Max"]


def test_many_are_created_at_once(store: Calls) -> None:
    store("addAll", body=[{"name": "a"}, {"name": "b", "id": 50}])
    assert names(store("search")) == ["Rex", "Max", "a", "b"]
    assert store("getPet", petId=50)["name"] == "b"  # type: ignore[index]


def test_a_post_to_an_item_changes_it_and_a_merge_patch_removes_fields(store: Calls) -> None:
    store("renamePet", petId=1, name="Kim")
    assert store("getPet", petId=1)["status"] == "sold"  # type: ignore[index]
    store("mergePet", petId=1, status=None, name="Zoe", category={"id": None})
    pet: Any = store("getPet", petId=1)
    assert (pet["name"], pet["category"], "status" in pet) == ("Zoe", {}, False)


def test_a_resource_of_an_item_is_kept_for_each_item(store: Calls) -> None:
    store("setSteps", petId=1, done=3)
    assert store("getSteps", petId=1) == {"done": 3}
    assert store("getSteps", petId=2) != {"done": 3}
    assert store("getSteps", petId=9) == "404 Not Found: /pet has no '9'"


SETTINGS = {
    "type": "object",
    "properties": {"theme": {"type": "string"}, "size": {"type": "integer"}},
}


def test_a_single_resource_keeps_what_was_put_patched_and_deleted() -> None:
    paths = {
        "/settings": {
            "get": op("get", answer=SETTINGS),
            "put": op("put", body=SETTINGS, answer=SETTINGS),
            "patch": op("patch", body=SETTINGS, answer=SETTINGS),
            "delete": op("delete"),
        }
    }
    call = made(paths, fixtures={"/settings": {"theme": "dark", "size": 3}})
    assert call("patch", size=4) == call("get") == {"theme": "dark", "size": 4}
    assert call("put", theme="light") == call("get") == {"theme": "light", "size": 0}
    call("delete")
    assert call("get") == "404 Not Found: /settings was removed"
    call("put", theme="new")
    assert call("get")["theme"] == "new"  # type: ignore[index]


def test_steps_of_json_patch_are_applied_or_refused() -> None:
    paths = {
        "/pet": {"get": op("list", answer=PETS)},
        "/pet/{petId}": {
            "parameters": [ID],
            "get": op("get", answer=REF),
            "patch": op("patch", body={"type": "array"}, kind="application/json-patch+json"),
        },
    }
    call = made(paths, fixtures={"/pet": ITEMS})
    steps = [
        {"op": "test", "path": "/name", "value": "Rex"},
        {"op": "replace", "path": "/category/id", "value": 9},
        {"op": "add", "path": "/tags/-", "value": "old"},
        {"op": "remove", "path": "/tags/0"},
    ]
    call("patch", petId=1, body=steps)
    pet: Any = call("get", petId=1)
    assert (pet["category"], pet["tags"]) == ({"id": 9}, ["old"])
    for step in ({"op": "remove", "path": "/none"}, {"op": "move", "path": "/name"}, 7):
        assert "422" in str(call("patch", petId=1, body=[step]))


def test_a_list_that_only_grows_is_kept() -> None:
    note = {"type": "object", "properties": {"text": {"type": "string"}}}
    paths = {
        "/notes": {
            "get": op("list", answer={"type": "array", "items": note}),
            "post": op("add", body=note, answer=note),
        }
    }
    call = made(paths, fixtures={})
    before: Any = call("list")
    call("add", text="mine")
    after: Any = call("list")
    assert [item["text"] for item in after[len(before) :]] == ["mine"]


def test_a_put_creates_where_nothing_else_does() -> None:
    paths = {
        "/pet": {"get": op("list", answer=PETS)},
        "/pet/{petId}": {
            "parameters": [ID],
            "get": op("get", answer=REF),
            "put": op("put", body=REF, answer=REF),
        },
    }
    call = made(paths, fixtures={"/pet": []})
    assert call("list") == []
    call("put", petId=5, name="Five")
    assert names(call("list")) == ["Five"]
    assert call("get", petId=5)["id"] == 5  # type: ignore[index]


def test_the_state_at_the_start_is_the_same_in_every_session_of_a_tool_set() -> None:
    answers = [made(STORE, seed=seed)("search") for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_fixtures_may_name_what_belongs_to_one_item() -> None:
    given = {"/pet": ITEMS, "/pet/2/steps": {"done": 8}}
    call = made(STORE, fixtures=given)
    assert call("getSteps", petId=2) == {"done": 8}
    assert call("getSteps", petId=1) != {"done": 8}


def test_the_state_that_scorers_see_is_what_was_changed() -> None:
    text = document(STORE, components={"schemas": {"Pet": PET}})
    tool_set = simulated_tool_set(text, fixtures=json.dumps({"/pet": ITEMS}))
    namespace: dict = {"__name__": "simulation"}
    exec(compile(tool_set.sources[0], "<simulation>", "exec"), namespace)
    api = namespace["Simulation"]()
    calls = {
        tool.name: getattr(api, function.partition(".")[2])
        for tool, function in zip(tool_set.tools, tool_set.functions, strict=True)
    }
    calls["search"]()
    calls["getSteps"](petId=2)
    assert api._state() == {}
    calls["renamePet"](petId=1, name="Kim")
    calls["setSteps"](petId=2, done=1)
    state = api._state()
    assert state == {
        "/pet": {"1": {**ITEMS[0], "name": "Kim"}, "2": ITEMS[1]},
        "/pet/2/steps": {"done": 1},
    }
    calls["renamePet"](petId=1, name="Rex")
    assert list(api._state()) == ["/pet/2/steps"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "invalid JSON"),
        ("[]", "an object with a value for each path"),
        ('{"/cats": []}', "found '/cats'"),
        ('{"/pet": [3]}', "/pet: expected objects, found 3"),
    ],
)
def test_fixtures_that_nothing_reads_are_named(given: str, message: str) -> None:
    text = document(STORE, components={"schemas": {"Pet": PET}})
    with pytest.raises(DataFileError, match=message):
        simulated_tool_set(text, fixtures=given)


def test_whole_numbers_with_a_point_are_integers(store: Calls) -> None:
    assert store("getPet", petId=1.0) == store("getPet", petId=1)


def test_an_argument_may_have_any_name() -> None:
    paths = {
        "/x": {"get": op("x", "self", "index", "filter[a]", "class", answer={"type": "string"})}
    }
    assert isinstance(
        made(paths)("x", self="a", index="b", **{"filter[a]": "c", "class": "d"}), str
    )


def test_sampled_lists_have_what_was_asked_for() -> None:
    paths = {"/cats": {"get": op("cats", "status", "limit:integer", answer=PETS)}}
    cats: Any = made(paths)("cats", status="sold", limit=1)
    assert [cat["status"] for cat in cats] == ["sold"]


def test_no_two_parts_of_a_simulation_share_a_name() -> None:
    # They become one module, in which the later one would silently replace the earlier.
    found: Counter[str] = Counter()
    for name in source.TEXTS:
        tree = ast.parse((Path(source.__file__).parent / name).read_text(encoding="utf-8"))
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            found.update(target.id for target in targets if isinstance(target, ast.Name))
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name] += 1
    assert [name for name, count in found.items() if count > 1] == []
