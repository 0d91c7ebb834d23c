"""The items of collections and the values of single resources; part of a simulated API's source."""

import random
from typing import Any

from envs.sources.openapi.simulation.json_patch import json_patched, merge_patched
from envs.sources.openapi.simulation.resources import Resources, fill, list_name
from envs.sources.openapi.simulation.values import (
    WORDS,
    blank_value,
    copied,
    drawn_value,
    is_number,
)

_INITIAL_ITEMS = 3
_REASONS = {404: "Not Found", 409: "Conflict", 422: "Unprocessable Entity"}


class ApiError(Exception):
    """A response with an error status, as a real API would send it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status} {_REASONS[status]}: {detail}")


class Stores:
    """The state of one session."""

    def __init__(self, resources: Resources, fixtures: dict, seed: int) -> None:
        self._resources = resources
        self._fixtures = fixtures
        self._seed = seed
        self._items: dict = {}
        self._initial_items: dict = {}
        self._created: set = set()
        self.singles: dict = {}
        """Values of single resources that were changed, by path."""

    def fixture(self, path: str, values: dict) -> Any:
        """Return the user's value for a path; None if there is none."""
        for place in (fill(path, values), path):
            if place in self._fixtures:
                return copied(self._fixtures[place])
        return None

    def items(self, collection: str, values: dict) -> dict:
        """Return the items of a collection by identity, which may be changed."""
        place = fill(collection, values)
        if place not in self._items:
            initial = self.fixture(collection, values)
            if not isinstance(initial, list):
                is_new = bool(self._fixtures) or place.rpartition("/")[0] in self._created
                initial = [] if is_new else self._initial(collection)
                for item in initial:
                    item.update({key: value for key, value in values.items() if key in item})
            name = self._resources.identity(collection)
            for number, item in enumerate(initial, start=1):
                item.setdefault(name, number)
            self._items[place] = {str(item[name]): item for item in initial}
            self._initial_items[place] = copied(self._items[place])
        return self._items[place]

    def changes(self) -> dict:
        """Return what differs from the start, by path: items by identity, or a single value."""
        changed_items = {
            place: items
            for place, items in self._items.items()
            if items != self._initial_items[place]
        }
        return copied({**changed_items, **self.singles})

    def found(self, collection: str, values: dict, key: Any) -> tuple:
        """Return a collection's items and the key of one of them. Raises ApiError."""
        items = self.items(collection, values)
        if str(key) not in items:
            raise ApiError(404, f"{fill(collection, values)} has no {str(key)!r}")
        return items, str(key)

    def create(self, collection: str, values: dict, fields: dict) -> Any:
        """Add an item, and return it. Raises ApiError if there is one with its identity."""
        items = self.items(collection, values)
        schema, name = self._resources.item_schema(collection), self._resources.identity(collection)
        item = {key: blank_value(below) for key, below in schema.get("properties", {}).items()}
        item.update({key: value for key, value in values.items() if key in item})
        item.update(fields)
        if fields.get(name) is None:
            item[name] = self._next_identity(collection, items, schema, name)
        key = str(item[name])
        if key in items:
            raise ApiError(409, f"{fill(collection, values)} has {key!r} already")
        items[key] = copied(item)
        self._created.add(f"{fill(collection, values)}/{key}")
        return copied(items[key])

    def change(self, operation: dict, collection: str, item: dict, body: Any) -> dict:
        """Return an item after a PUT, PATCH or POST of `body`. Raises ApiError."""
        name = self._resources.identity(collection)
        schema = self._resources.item_schema(collection).get("properties", {})
        after = changed(operation, item, body, schema, name)
        if not isinstance(after, dict):
            raise ApiError(422, "expected the fields of an item")
        after = {**after, name: item[name]}
        order = [field for field in (*item, *after) if field in after]
        return {field: after[field] for field in order}

    def _initial(self, collection: str) -> list:
        """Return the initial items of a collection, each an object with an identity."""
        found = self._examples(collection)
        if not found:
            schema = self._resources.item_schema(collection)
            name = self._resources.identity(collection)
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
        listing = self._resources.by_path.get(collection, {}).get("get")
        example = listing["example"] if listing else None
        if isinstance(example, dict):
            example = example.get(list_name(listing))
        given = example if isinstance(example, list) else []
        items = [item for item in given if isinstance(item, dict)]
        if not items:
            single = self._resources.item_operations(collection).get("get")
            example = single["example"] if single else None
            items = [example] if isinstance(example, dict) else []
        name = self._resources.identity(collection)
        return items if all(item.get(name) is not None for item in items) else []

    def _next_identity(self, collection: str, items: dict, schema: dict, name: str) -> Any:
        if is_number(schema.get("properties", {}).get(name, {"type": "integer"})):
            return 1 + max([int(key) for key in items if key.isdecimal()] or [0])
        word = collection.rpartition("/")[2]
        number = len(items) + 1
        while f"{word}-{number}" in items:
            number += 1
        return f"{word}-{number}"


def changed(operation: dict, value: Any, body: Any, schema: dict, identity: str) -> Any:
    """Return a stored value after an operation that sends `body`. Raises ApiError."""
    kind = operation["body"]
    if "json-patch" in kind and isinstance(body, list):
        try:
            return json_patched(copied(value), body)
        except (ValueError, AttributeError, TypeError) as error:
            raise ApiError(422, str(error)) from error
    if not isinstance(body, dict) or not isinstance(value, dict):
        return copied(body)
    if "merge-patch" in kind:
        return merge_patched(value, body)
    if operation["method"] != "put":
        return {**value, **copied(body)}
    kept = {field: old for field, old in value.items() if field == identity or field not in schema}
    blank = {field: blank_value(below) for field, below in schema.items() if field != identity}
    return {**blank, **kept, **copied(body)}
