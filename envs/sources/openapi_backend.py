"""A simulated API: a store per collection, and plausible answers for all other paths.

The text of this file is part of every simulation (`openapi_simulation.py`). In addition to
`openapi_values.py` it needs only the standard library. A path `P` is a collection if there is a
path `P/{id}` and items can be written: POST creates, GET lists and reads, PUT and PATCH change,
DELETE removes. Other answers are the document's examples, or are sampled from the schema with a
seed made of the session's seed and the arguments: equal calls get equal answers. Collections start
with the document's examples, or with three sampled items. Nothing else of an operation's meaning
is simulated.
"""

import json
import random
import re
from typing import Any

from envs.sources.openapi_values import (
    WORDS,
    argument_fault,
    blank_value,
    copied,
    drawn_value,
    is_number,
)

_INITIAL_ITEMS = 3
_REASONS = {404: "Not Found", 409: "Conflict", 422: "Unprocessable Entity"}
_COUNTS = ("total", "count", "total_results", "total_count", "totalCount", "totalResults")
_SEARCHES = ("q", "query", "search")
_SIZES = ("limit", "per_page", "page_size", "pageSize")


class ApiError(Exception):
    """A response with an error status, as a real API would send it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status} {_REASONS[status]}: {detail}")


class SimulatedApi:
    """State of one session; `openapi_simulation.py` defines the format of `operations`."""

    def __init__(self, operations: list, seed: int) -> None:
        self._operations = operations
        self._seed = seed
        self._by_path = {}
        for operation in operations:
            self._by_path.setdefault(operation["path"], {})[operation["method"]] = operation
        self._collections = self._writable()
        self._stores = {}
        self._created = set()

    def answer(self, index: int, arguments: dict) -> Any:
        """Return the operation's response. Raises ApiError."""
        operation = self._operations[index]
        fault = argument_fault(operation["properties"], operation["required"], arguments)
        if fault:
            raise ApiError(422, fault)
        path, method = operation["path"], operation["method"]
        values, query, body = _sorted(operation, arguments)
        self._check_parents(path, values)
        collection, _, hole = path.rpartition("/")
        if path in self._collections and method in ("get", "post"):
            if method == "post":
                return self._create(operation, values, body)
            return self._list(operation, values, query)
        if collection in self._collections and _is_hole(hole):
            return self._item(operation, values, body)
        return self._stateless(operation, values, {**query, **body})

    def _writable(self) -> dict:
        found = {}
        for path, methods in self._by_path.items():
            collection, _, hole = path.rpartition("/")
            if not _is_hole(hole) or not collection:
                continue
            above = self._by_path.get(collection, {})
            if "post" in above or {"put", "patch", "delete"} & set(methods):
                found[collection] = hole[1:-1]
        return found

    def _check_parents(self, path: str, values: dict) -> None:
        """Raise ApiError if an item along `path` does not exist."""
        parts = path.split("/")
        for end in range(2, len(parts)):
            collection, hole = "/".join(parts[: end - 1]), parts[end - 1]
            if _is_hole(hole) and collection in self._collections:
                self._found(collection, values)

    def _found(self, collection: str, values: dict) -> tuple:
        key = str(values.get(self._collections[collection]))
        items = self._store(collection, values)
        if key not in items:
            raise ApiError(404, f"{_fill(collection, values)} has no {key!r}")
        return items, key

    # Collections

    def _create(self, operation: dict, values: dict, body: dict) -> Any:
        collection = operation["path"]
        items = self._store(collection, values)
        schema, name = self._item_schema(collection), self._identity(collection)
        fields = dict(body) if isinstance(body, dict) else {"value": body}
        item = {key: blank_value(below) for key, below in schema.get("properties", {}).items()}
        item.update({key: value for key, value in values.items() if key in item})
        item.update(fields)
        if fields.get(name) is None:
            item[name] = self._next_identity(collection, items, schema, name)
        key = str(item[name])
        if key in items:
            raise ApiError(409, f"{_fill(collection, values)} has {key!r} already")
        items[key] = item
        self._created.add(f"{_fill(collection, values)}/{key}")
        return copied(item)

    def _list(self, operation: dict, values: dict, query: dict) -> Any:
        items = list(self._store(operation["path"], values).values())
        for name, value in query.items():
            if name in _SEARCHES:
                items = [item for item in items if str(value).lower() in json.dumps(item).lower()]
            elif any(isinstance(item, dict) and name in item for item in items):
                items = [item for item in items if _alike(item.get(name), value)]
        total = len(items)
        size = next((query[name] for name in _SIZES if isinstance(query.get(name), int)), 0)
        given, skipped = query.get("page"), query.get("offset")
        page = given if isinstance(given, int) else 1
        start = skipped if isinstance(skipped, int) else 0
        if size > 0:
            start += max(page - 1, 0) * size
            items = items[start : start + size]
        else:
            items = items[start:]
        return self._in_shape(operation, copied(items), total, page)

    def _in_shape(self, operation: dict, items: list, total: int, page: int) -> Any:
        """Wrap a list in the response object of the operation, if its response is an object."""
        properties = operation["schema"].get("properties", {})
        name = _list_name(operation)
        if name is None:
            return items
        shaped = {}
        for key, below in properties.items() or [(name, {})]:
            shaped[key] = total if key in _COUNTS else page if key == "page" else blank_value(below)
        shaped[name] = items
        return shaped

    def _item(self, operation: dict, values: dict, body: dict) -> Any:
        collection = operation["path"].rpartition("/")[0]
        items, key = self._found(collection, values)
        method = operation["method"]
        if method in ("get", "head", "options"):
            return copied(items[key])
        if method == "delete":
            del items[key]
            return {"status": operation["status"]}
        name = self._identity(collection)
        fields = {field: value for field, value in body.items() if field != name}
        if method == "put":
            schema = self._item_schema(collection).get("properties", {})
            kept = {f: v for f, v in items[key].items() if f == name or f not in schema}
            blank = {field: blank_value(below) for field, below in schema.items() if field != name}
            items[key] = {**blank, **kept, **fields}
        else:
            items[key].update(fields)
        return copied(items[key])

    def _store(self, collection: str, values: dict) -> dict:
        place = _fill(collection, values)
        if place not in self._stores:
            initial = [] if place.rpartition("/")[0] in self._created else self._initial(collection)
            name = self._identity(collection)
            items = {}
            for item in initial:
                item.update({key: value for key, value in values.items() if key in item})
                items[str(item.get(name))] = item
            self._stores[place] = items
        return self._stores[place]

    def _initial(self, collection: str) -> list:
        """Return the initial items of a collection, each an object with an identity."""
        found = self._examples(collection)
        if not found:
            schema, name = self._item_schema(collection), self._identity(collection)
            for number in range(1, _INITIAL_ITEMS + 1):
                rng = random.Random(f"{self._seed}:{collection}:{number}")
                item = drawn_value(schema or {"type": "object"}, rng, "item", 4)
                item = item if isinstance(item, dict) else {"value": item}
                identity = schema.get("properties", {}).get(name, {})
                word = rng.choice(WORDS)
                item[name] = number if is_number(identity) else f"{word}-{number}"
                found.append(item)
        return copied(found)

    def _examples(self, collection: str) -> list:
        listing = self._by_path.get(collection, {}).get("get")
        example = listing["example"] if listing else None
        if isinstance(example, dict):
            example = example.get(_list_name(listing))
        items = [item for item in example or [] if isinstance(item, dict)]
        if not items:
            hole = self._collections[collection]
            single = self._by_path[f"{collection}/{{{hole}}}"].get("get")
            example = single["example"] if single else None
            items = [example] if isinstance(example, dict) else []
        name = self._identity(collection)
        return items if all(item.get(name) is not None for item in items) else []

    def _item_schema(self, collection: str) -> dict:
        hole = self._collections[collection]
        single = self._by_path[f"{collection}/{{{hole}}}"]
        above = self._by_path.get(collection, {})
        listing = above.get("get", {}).get("schema", {})
        if "properties" in listing:
            listing = listing["properties"].get(_list_name(above["get"]), {})
        candidates = [single[m]["schema"] for m in ("get", "put", "patch") if m in single]
        candidates += [above["post"]["schema"]] if "post" in above else []
        candidates += [listing.get("items", {})]
        return next((schema for schema in candidates if schema.get("properties")), {})

    def _identity(self, collection: str) -> str:
        hole = self._collections[collection]
        properties = self._item_schema(collection).get("properties", {})
        return next((name for name in (hole, "id", "uuid", "name") if name in properties), "id")

    def _next_identity(self, collection: str, items: dict, schema: dict, name: str) -> Any:
        if is_number(schema.get("properties", {}).get(name, {"type": "integer"})):
            return 1 + max([int(key) for key in items if key.isdecimal()] or [0])
        word = collection.rpartition("/")[2]
        number = len(items) + 1
        while f"{word}-{number}" in items:
            number += 1
        return f"{word}-{number}"

    # Answers without state

    def _stateless(self, operation: dict, values: dict, given: dict) -> Any:
        example, schema = operation["example"], operation["schema"]
        if example is not None and (not schema or self._fits(example, values)):
            return copied(example)
        if not schema and example is None:
            return {"status": operation["status"]}
        place = _fill(operation["path"], values)
        rng = random.Random(f"{self._seed}:{place}:{json.dumps(given, sort_keys=True)}")
        drawn = drawn_value(schema, rng, "value", 5)
        if isinstance(drawn, dict):
            echoed = {**given, **values}
            if values and "id" not in echoed:
                echoed["id"] = list(values.values())[-1]
            drawn.update({key: value for key, value in echoed.items() if key in drawn})
        return drawn

    def _fits(self, example: Any, values: dict) -> bool:
        """Return whether an example can be the answer for the item that the path names."""
        if not values:
            return True
        last = list(values.values())[-1]
        names = [name for name in (*values, "id") if isinstance(example, dict) and name in example]
        return bool(names) and all(_alike(example[name], values.get(name, last)) for name in names)


def _sorted(operation: dict, arguments: dict) -> tuple:
    """Return the arguments of the path, the query and the body, under their names in the API."""
    values, query, body = {}, {}, {}
    for argument, value in arguments.items():
        name = operation["wire_names"].get(argument, argument)
        place = operation["locations"].get(argument)
        if place == "path":
            values[name] = value
        elif place == "query":
            query[name] = value
        elif place == "body":
            body = value if isinstance(value, dict) else {"value": value}
        elif place is None:
            body[name] = value
    for name, below in operation["properties"].items():
        if operation["locations"].get(name) == "query" and "default" in below:
            query.setdefault(operation["wire_names"].get(name, name), below["default"])
    return values, query, body


def _list_name(operation: dict) -> Any:
    """Return the property of the response object that holds the list; None if there is none."""
    schema, example = operation["schema"], operation["example"]
    for name, below in schema.get("properties", {}).items():
        if below.get("type") == "array":
            return name
    if not schema and isinstance(example, dict):
        return next((name for name, value in example.items() if isinstance(value, list)), None)
    return None


def _fill(path: str, values: dict) -> str:
    return re.sub(r"{([^{}]*)}", lambda hole: str(values.get(hole[1], hole[0])), path)


def _is_hole(part: str) -> bool:
    return part[:1] == "{" and part[-1:] == "}"


def _alike(one: Any, other: Any) -> bool:
    return str(one).lower() == str(other).lower()
