"""What the paths of an API are: collections, items, lists of another collection's items, single
resources; part of a simulated API's source.

A path `P` is a collection if there is `P/{id}` and items can be written, or if `P` itself lists and
creates. A path that lists the kind of thing that is in a collection shows that collection. A path
that is read and written without an id is a single resource.
"""

import re
from typing import Any

_CHANGES = frozenset({"put", "patch", "delete"})


class Resources:
    """The paths of `operations`; `fixtures` are the user's values, by path."""

    def __init__(self, operations: list, fixtures: dict) -> None:
        self.by_path: dict = {}
        for operation in operations:
            self.by_path.setdefault(operation["path"], {})[operation["method"]] = operation
        self.collections: dict = {}
        """The name of the hole that follows each collection; empty if there is none."""
        for path, methods in self.by_path.items():
            self._note_items(path, methods, fixtures)
            self._note_list(path, methods)

    def item_of(self, path: str) -> str:
        """Return the collection whose items `path` names; empty if it names none."""
        collection, _, hole = path.rpartition("/")
        return collection if is_hole(hole) and collection in self.collections else ""

    def shown_by(self, path: str) -> str:
        """Return the collection whose items `path` lists, or empty."""
        names = self._listed(path)
        if not names:
            return ""
        fitting = [known for known in self.collections if names & self._kinds(known)]
        above = [known for known in fitting if path.startswith(f"{known}/")]
        if above:
            return max(above, key=len)
        free = [known for known in fitting if "{" not in known]
        return free[0] if len(free) == 1 else ""

    def is_single(self, path: str) -> bool:
        """Whether what a GET of `path` answers is changed by other methods of the path."""
        methods = self.by_path[path]
        return (
            "get" in methods
            and bool(_CHANGES & set(methods))
            and path not in self.collections
            and not self.item_of(path)
        )

    def bulk_target(self, path: str, kind: str) -> str:
        """Return the collection above `path` that holds things of `kind`; empty if there is none.

        It is for paths such as `/user/createWithList`.
        """
        above = path.rpartition("/")[0]
        return above if above in self.collections and kind in self._kinds(above) else ""

    def item_operations(self, collection: str) -> dict:
        """Return the operations on single items, by method."""
        hole = self.collections[collection]
        return self.by_path.get(f"{collection}/{{{hole}}}", {}) if hole else {}

    def item_schema(self, collection: str) -> dict:
        """Return the schema of an item."""
        single = self.item_operations(collection)
        above = self.by_path.get(collection, {})
        listing = above.get("get", {}).get("schema", {})
        if "properties" in listing:
            listing = listing["properties"].get(list_name(above["get"]), {})
        candidates = [single[m]["schema"] for m in ("get", "put", "patch") if m in single]
        candidates += [above[m]["schema"] for m in ("post", "put", "patch") if m in above]
        candidates += [listing.get("items", {})]
        return next((schema for schema in candidates if schema.get("properties")), {})

    def identity(self, collection: str) -> str:
        """Return the field that tells the items of a collection apart."""
        hole = self.collections[collection]
        properties = self.item_schema(collection).get("properties", {})
        return next((name for name in (hole, "id", "uuid", "name") if name in properties), "id")

    def _note_items(self, path: str, methods: dict, fixtures: dict) -> None:
        collection, _, hole = path.rpartition("/")
        if not is_hole(hole) or not collection:
            return
        above = self.by_path.get(collection, {})
        is_given = any(
            isinstance(value, list) and fits(place, collection) for place, value in fixtures.items()
        )
        if "post" in above or _CHANGES & set(methods) or is_given:
            self.collections[collection] = hole[1:-1]

    def _note_list(self, path: str, methods: dict) -> None:
        """Note a path that lists and creates, but has no path for single items."""
        if not {"get", "post"} <= set(methods) or is_hole(path.rpartition("/")[2]):
            return
        listed, made = self._listed(path), methods["post"]
        if listed & {made["answered"][0], made["sent"][0]} or (listed and made["status"] == 201):
            self.collections.setdefault(path, "")

    def _listed(self, path: str) -> set:
        """Return the name of the kind of thing that a GET of `path` lists, as a set."""
        reading = self.by_path.get(path, {}).get("get")
        return {reading["answered"][1]} - {""} if reading else set()

    def _kinds(self, collection: str) -> set:
        names = set(self._listed(collection))
        for method, operation in self.item_operations(collection).items():
            names |= {operation["answered"][0]} if method != "delete" else set()
            names |= {operation["sent"][0]}
        created = self.by_path.get(collection, {}).get("post")
        if created:
            names |= {created["answered"][0], created["sent"][0]}
        return names - {""}


def fill(path: str, values: dict) -> str:
    """Return `path` with the values of its parameters."""
    return re.sub(r"{([^{}]*)}", lambda hole: str(values.get(hole[1], hole[0])), path)


def fits(path: str, template: str) -> bool:
    """Whether `path` is `template`, or has values in place of its parameters."""
    parts = re.split(r"{[^{}]*}", template)
    pattern = "[^/]+".join(map(re.escape, parts))
    return path == template or re.fullmatch(pattern, path) is not None


def is_hole(part: str) -> bool:
    return part[:1] == "{" and part[-1:] == "}"


def list_name(operation: dict) -> Any:
    """Return the property of the response object that holds the list; None if there is none."""
    schema, example = operation["schema"], operation["example"]
    for name, below in schema.get("properties", {}).items():
        if _is_list(below):
            return name
    if not schema and isinstance(example, dict):
        return next((name for name, value in example.items() if isinstance(value, list)), None)
    return None


def _is_list(schema: dict) -> bool:
    kind = schema.get("type")
    return kind == "array" or (isinstance(kind, list) and "array" in kind)
