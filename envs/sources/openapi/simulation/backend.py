"""A simulated API: a store per collection, and plausible answers for all other paths.

The text of this file is part of every simulation (`source.py`), after those that it imports. In
addition it needs only the standard library. Collections (`resources.py`): POST creates, GET lists,
filters and reads, PUT and PATCH change, DELETE removes; the id stands in the path, or in the body
or query where the path has none. Single resources keep what PUT, PATCH and DELETE changed. The
state at the start is the user's fixtures, else the document's examples, else three sampled items;
it is the same in every session. Other answers are the document's examples, or are sampled from the
schema with a seed made of the tool set's seed and the arguments: equal calls get equal answers.
Nothing else of an operation's meaning is simulated.
"""

import json
import random
from typing import Any

from envs.sources.openapi.simulation.listing import (
    field_of,
    filtered,
    fitting_list,
    listed_example,
    reading,
    shaped_list,
)
from envs.sources.openapi.simulation.resources import Resources, fill, list_name
from envs.sources.openapi.simulation.stores import ApiError, Stores, changed
from envs.sources.openapi.simulation.values import (
    alike,
    argument_fault,
    copied,
    drawn_value,
    whole_numbers,
)

_READS = ("get", "head")


class SimulatedApi:
    """State of one session; `source.py` defines the format of `operations`."""

    def __init__(self, operations: list, fixtures: dict, seed: int) -> None:
        self._operations = operations
        self._seed = seed
        self._resources = Resources(operations, fixtures)
        self._stores = Stores(self._resources, fixtures, seed)

    def answer(self, index: int, arguments: dict) -> Any:
        """Return the operation's response. Raises ApiError."""
        operation = self._operations[index]
        schema = {"properties": operation["properties"]}
        given = whole_numbers(schema, {**operation["defaults"], **arguments})
        fault = argument_fault(
            operation["properties"], operation["required"], given, operation["others"]
        )
        if fault:
            raise ApiError(422, fault)
        call = _Call(operation, given)
        self._check_parents(call)
        answer = self._routed(call)
        return {"status": 200} if operation["method"] == "head" else answer

    def _state(self) -> dict:
        """Return what scorers compare: all that the session's calls have changed, by path.

        Reading changes nothing.
        """
        return self._stores.changes()

    def _routed(self, call: "_Call") -> Any:
        path, method = call.path, call.method
        collection = self._resources.item_of(path)
        lists = path in self._resources.collections
        if collection and not (lists and method == "get" and call.operation["answered"][1]):
            return self._item(call, collection)
        if lists:
            return self._collection(call)
        if method == "post" and isinstance(call.body, list):
            target = self._resources.bulk_target(path, call.operation["sent"][1])
            if target:
                return self._create_all(call, target)
        if method in _READS:
            return self._read(call)
        if self._resources.is_single(path):
            return self._change_single(call)
        return self._drawn(call)

    def _check_parents(self, call: "_Call") -> None:
        """Raise ApiError if an item along the path does not exist."""
        parts = call.path.split("/")
        for end in range(2, len(parts)):
            path = "/".join(parts[:end])
            collection = self._resources.item_of(path)
            if collection:
                hole = self._resources.collections[collection]
                self._stores.found(collection, call.values, call.values.get(hole))

    # Collections

    def _collection(self, call: "_Call") -> Any:
        path, method = call.path, call.method
        if method in _READS:
            items = list(self._stores.items(path, call.values).values())
            return shaped_list(call.operation, filtered(items, call.query), call.query)
        if method == "post":
            if isinstance(call.body, list):
                return self._create_all(call, path)
            return self._stores.create(path, call.values, call.fields)
        name = self._resources.identity(path)
        key = call.fields.get(name, call.query.get(name))
        if key is not None:
            return self._change_item(call, path, key)
        if method == "delete":
            items = self._stores.items(path, call.values)
            for gone in filtered(list(items.values()), call.query):
                del items[str(gone[name])]
            return {"status": call.operation["status"]}
        if method == "put" and isinstance(call.body, list):
            self._stores.items(path, call.values).clear()
            return self._create_all(call, path)
        return self._drawn(call)

    def _create_all(self, call: "_Call", collection: str) -> Any:
        made = [
            self._stores.create(collection, call.values, item if isinstance(item, dict) else {})
            for item in call.body
        ]
        return made if call.operation["answered"][1] else {"status": call.operation["status"]}

    def _item(self, call: "_Call", collection: str) -> Any:
        key = call.values.get(self._resources.collections[collection])
        if call.method in _READS:
            items, name = self._stores.found(collection, call.values, key)
            return copied(items[name])
        return self._change_item(call, collection, key)

    def _change_item(self, call: "_Call", collection: str, key: Any) -> Any:
        name = self._resources.identity(collection)
        items = self._stores.items(collection, call.values)
        creates = "post" in self._resources.by_path.get(collection, {})
        if call.method == "put" and str(key) not in items and not creates:
            return self._stores.create(collection, call.values, {**call.fields, name: key})
        items, found = self._stores.found(collection, call.values, key)
        if call.method == "delete":
            del items[found]
            return {"status": call.operation["status"]}
        body = call.body if call.has_body else call.known_query(items[found])
        if not isinstance(body, (dict, list)):
            return self._drawn(call)  # nothing says what the item becomes
        items[found] = self._stores.change(call.operation, collection, items[found], body)
        return copied(items[found])

    # Other paths

    def _read(self, call: "_Call") -> Any:
        place = fill(call.path, call.values)
        if place in self._stores.singles:
            value = self._stores.singles[place]
            if value is None:
                raise ApiError(404, f"{place} was removed")
            return copied(value)
        fixture = self._stores.fixture(call.path, call.values)
        if fixture is not None:
            if isinstance(fixture, list):
                return shaped_list(call.operation, filtered(fixture, call.query), call.query)
            return fixture
        collection = self._resources.shown_by(call.path)
        shown = self._shown(call, collection) if collection else None
        return self._drawn(call) if shown is None else shown

    def _shown(self, call: "_Call", collection: str) -> Any:
        """Return items of a collection; None if a value of the path is no field of theirs."""
        above = {name for name in call.values if f"{{{name}}}" in collection}
        items = list(self._stores.items(collection, call.values).values())
        for name in call.values.keys() - above:
            field = field_of(name, items)
            if not field:
                return None
            items = [item for item in items if alike(reading(item, field), call.values[name])]
        return shaped_list(call.operation, filtered(items, call.query), call.query)

    def _change_single(self, call: "_Call") -> Any:
        """Change a resource without an id, if the call sends what it becomes, or removes it."""
        place, status = fill(call.path, call.values), {"status": call.operation["status"]}
        if call.method == "delete":
            if call.query or call.has_body:
                return self._drawn(call)
            self._stores.singles[place] = None
            return status
        if not call.has_body:
            return self._drawn(call)
        reads = self._resources.by_path[call.path]["get"]
        try:
            before = self._read(_Call(reads, {}, call.values))
        except ApiError:
            before = {}
        schema = reads["schema"].get("properties", {})
        after = changed(call.operation, before, call.body, schema, "")
        self._stores.singles[place] = after
        return copied(after) if call.operation["schema"] else status

    def _drawn(self, call: "_Call") -> Any:
        """Return the document's example, or a value sampled from the schema."""
        operation = call.operation
        example, schema = operation["example"], operation["schema"]
        if example is not None and (not schema or _is_about(example, call.values)):
            return listed_example(operation, example, call.query)
        if not schema and example is None:
            return {"status": operation["status"]}
        given = {**call.query, **call.fields}
        place = fill(call.path, call.values)
        rng = random.Random(f"{self._seed}:{place}:{json.dumps(given, sort_keys=True)}")
        drawn = drawn_value(schema, rng, "value", 5)
        if isinstance(drawn, list):
            return fitting_list(drawn, call.query)
        if isinstance(drawn, dict):
            echoed = {**given, **call.values}
            if call.values and "id" not in echoed:
                echoed["id"] = list(call.values.values())[-1]
            name = list_name(operation)
            if isinstance(drawn.get(name), list):
                drawn[name] = fitting_list(drawn[name], call.query)
            drawn.update({key: value for key, value in echoed.items() if key in drawn})
        return drawn


class _Call:
    """The arguments of one call, by their places and under their names in the API."""

    def __init__(self, operation: dict, arguments: dict, values: Any = None) -> None:
        self.operation = operation
        self.path, self.method = operation["path"], operation["method"]
        self.values, self.query = dict(values or {}), {}
        self.has_body = False
        self.body: Any = {}
        for argument, value in arguments.items():
            place, name = operation["places"].get(argument, ("field", argument))
            if place == "path":
                self.values[name] = value
            elif place == "query" and value is not None:
                self.query[name] = value
            elif place == "body":
                self.body, self.has_body = value, True
            elif place == "field":
                self.body[name] = value
                self.has_body = True
        for argument, below in operation["properties"].items():
            place, name = operation["places"].get(argument, ("", ""))
            if place == "query" and "default" in below:
                self.query.setdefault(name, below["default"])

    @property
    def fields(self) -> dict:
        """The fields of the body; a body of another kind is the field `value`."""
        return self.body if isinstance(self.body, dict) else {"value": self.body}

    def known_query(self, item: dict) -> Any:
        """Return the arguments of the query that are fields of an item; None if there are none."""
        return {name: value for name, value in self.query.items() if name in item} or None


def _is_about(example: Any, values: dict) -> bool:
    """Return whether an example can be the answer for the item that the path names."""
    if not values:
        return True
    last = list(values.values())[-1]
    names = [name for name in (*values, "id") if isinstance(example, dict) and name in example]
    return bool(names) and all(alike(example[name], values.get(name, last)) for name in names)
