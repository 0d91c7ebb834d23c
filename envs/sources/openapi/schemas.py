"""Schemas of an OpenAPI document, simplified: no references, one keyword for each idea.

The rest of the project has to know fewer keywords then: `allOf` is merged, `oneOf` becomes `anyOf`,
`nullable` a type, `const` an enumeration. What is left out only makes a check looser.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import JsonValue

from envs.errors import DataFileError
from envs.sources.openapi.document import OpenApiDocument
from envs.sources.openapi.merging import merged, with_null
from envs.sources.openapi.yaml_core import written_as
from envs.tools import JsonObject

Side = Literal["request", "answer"]
_TYPES = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
_COPIED = (
    *("default", "description", "format", "pattern", "minimum", "maximum", "multipleOf"),
    *("minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "contentEncoding"),
    *("contentMediaType", "minProperties", "maxProperties"),
)
_NUMBERS = frozenset(
    {"minimum", "maximum", "multipleOf", "minLength", "maxLength", "minItems", "maxItems"}
    | {"minProperties", "maxProperties"}
)
_TEXTS = frozenset({"description", "format", "pattern", "contentEncoding", "contentMediaType"})
_MAX_CHAIN = 24
_CHARACTERS_A_PART = 64
"""A long text counts as so many parts as a schema of that length would."""
"""Schemas that may be merged into one (`allOf`, and references with words beside them)."""
_VALUE_DEPTH = 12
_EXAMPLE_LENGTH = 120
_DEPTHS = (8, 6, 4, 3, 2)


class TooLarge(DataFileError):
    """A schema with more parts than the budget of its operation."""


class SchemaReader:
    """Simplifies the schemas of one operation, within a budget of parts."""

    def __init__(self, document: OpenApiDocument, side: Side, budget: int) -> None:
        self._document = document
        self._side = side
        self._hidden = "readOnly" if side == "request" else "writeOnly"
        self._budget = budget
        self._left = budget
        self._parents: list[str] = []

    def fitted(self, node: JsonValue) -> JsonObject:
        """Return the schema `node` simplified, as deep as the budget allows; below, any value.

        The depth also ends schemas that contain themselves. Parts of the result are shared: do not
        change them. Raises DataFileError, and TooLarge if
        its first two levels alone exceed the budget.
        """
        before = self._left
        for depth in _DEPTHS:
            self._left = before
            self._parents.clear()
            try:
                return self._plain(node, depth, 0)
            except TooLarge:
                if depth == _DEPTHS[-1]:
                    raise
        raise AssertionError("unreachable: the last depth returns or raises")

    def value(
        self, value: JsonValue, items: int | None = None, depth: int = _VALUE_DEPTH
    ) -> JsonValue:
        """Return a value of the document with at most `items` entries per list, in JSON's types."""
        self._spend()
        if isinstance(value, list):
            shown = value[:items] if depth > 0 else []
            return [self.value(item, items, depth - 1) for item in shown]
        if isinstance(value, dict):
            pairs = value.items() if depth > 0 else ()
            self._spend(sum(len(key) for key, _ in pairs) // _CHARACTERS_A_PART)
            return {key: self.value(item, items, depth - 1) for key, item in pairs}
        if isinstance(value, str):
            self._spend(len(value) // _CHARACTERS_A_PART)
            return value
        if value is None or isinstance(value, bool):
            return value
        return int(value) if isinstance(value, int) else float(value)

    def _spend(self, parts: int = 1) -> None:
        self._left -= parts
        if self._left < 0:
            raise TooLarge(
                f"expected schemas of at most {self._budget} parts once references are followed, "
                "found more: simplify them in the document"
            )

    def _plain(self, node: JsonValue, depth: int, chain: int) -> JsonObject:
        self._spend()
        if isinstance(node, bool) or depth <= 0 or chain > _MAX_CHAIN:
            return {}
        if not isinstance(node, dict):
            raise DataFileError(f"expected a schema, found {str(node)[:80]!r}")
        reference = node.get("$ref")
        if isinstance(reference, str):
            return self._referred(node, reference, depth, chain)
        parts = node.get("allOf")
        if isinstance(parts, list) and parts:
            rest = {key: value for key, value in node.items() if key != "allOf"}
            found = [self._plain(part, depth, chain + 1) for part in parts]
            below = self._plain(rest, depth, chain + 1)
            whole = merged([*found, below])
            return with_null(whole) if node.get("nullable") is True else whole
        return self._own_words(node, depth, chain)

    def _referred(self, node: JsonObject, reference: str, depth: int, chain: int) -> JsonObject:
        if chain == _MAX_CHAIN:
            raise DataFileError(f"expected a schema, found a circle of references at {reference!r}")
        target = self._followed(reference, depth, chain)
        beside = {key: value for key, value in node.items() if key != "$ref"}
        if not beside or not self._document.words_beside_references:
            return target
        return merged([target, self._plain(beside, depth, chain + 1)])

    def _followed(self, reference: str, depth: int, chain: int) -> JsonObject:
        """Return the target of a reference; what was read before costs the same and no time."""
        above = tuple(self._parents) if self._document.has_parents else ()
        key = (self._side, reference, depth, above)
        if key not in self._document.read_before:
            before = self._left
            self._parents.append(reference)
            target = self._plain(self._document.target(reference), depth, chain + 1)
            self._parents.pop()
            self._document.read_before[key] = (target, before - self._left)
            return target
        target, parts = self._document.read_before[key]
        self._spend(parts)
        return target

    def _own_words(self, node: JsonObject, depth: int, chain: int) -> JsonObject:
        plain = self._simple_words(node)
        self._add_types(plain, node)
        self._add_parts(plain, node, depth)
        options = self._options(node, depth)
        if options:
            plain = _with_options(plain, options)
        return with_null(plain) if node.get("nullable") is True else plain

    def _simple_words(self, node: JsonObject) -> JsonObject:
        plain: JsonObject = {}
        for key in _COPIED:
            value = node.get(key)
            if key in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
                continue
            if key in _TEXTS and not isinstance(value, str):
                continue
            if key in node:
                plain[key] = self.value(value)
        for key, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            value = node.get(key)
            if value is True and bound in plain:
                plain[key] = plain.pop(bound)  # as 3.0 writes it
            elif isinstance(value, int | float) and not isinstance(value, bool):
                plain[key] = self.value(value)
        if node.get(self._hidden) is True:
            plain[self._hidden] = True
        if self._side == "request":
            plain |= self.shown_example(node)
        return plain

    def shown_example(self, node: JsonObject) -> JsonObject:
        """Return the first example of a schema or parameter, if it is a short scalar."""
        given = node.get("examples")
        example = node.get("example", given[0] if isinstance(given, list) and given else None)
        if isinstance(example, bool) or not isinstance(example, str | int | float):
            return {}
        if isinstance(example, str) and not 0 < len(example) <= _EXAMPLE_LENGTH:
            return {}
        written = written_as(example) if node.get("type") == "string" else self.value(example)
        return {"examples": [written]}

    def _add_types(self, plain: JsonObject, node: JsonObject) -> None:
        """Add `type` and `enum`; values that the type does not allow are read as it means them."""
        given = node.get("type")
        kinds = [kind for kind in (given if isinstance(given, list) else [given])]
        known = [kind for kind in kinds if isinstance(kind, str) and kind in _TYPES]
        if known and len(known) == len(kinds):
            plain["type"] = known[0] if len(known) == 1 else [*known]
        else:
            known = []
        options = [node["const"]] if "const" in node else node.get("enum")
        if isinstance(options, list) and options:
            listed = [_meant(option, known) for option in options]
            plain["enum"] = [self.value(option) for option in listed]
        if "default" in plain:
            plain["default"] = self.value(_meant(node["default"], known))

    def _add_parts(self, plain: JsonObject, node: JsonObject, depth: int) -> None:
        """Add the schemas inside: of items, of properties, of other fields."""
        items = node.get("items")
        if isinstance(items, dict):
            plain["items"] = self._plain(items, depth - 1, 0)
        first = node.get("prefixItems")
        if isinstance(first, list):
            plain["prefixItems"] = [self._plain(item, depth - 1, 0) for item in first]
        if "items" in plain or "prefixItems" in plain:
            plain.setdefault("type", "array")
        properties = node.get("properties")
        if isinstance(properties, dict):
            plain.setdefault("type", "object")
            below = {name: self._plain(part, depth - 1, 0) for name, part in properties.items()}
            plain["properties"] = {
                name: part for name, part in below.items() if part.get(self._hidden) is not True
            }
        required = node.get("required")
        if isinstance(required, list):
            plain["required"] = [name for name in required if isinstance(name, str)]
        patterns = node.get("patternProperties")
        if isinstance(patterns, dict):
            plain["patternProperties"] = {
                pattern: self._plain(part, depth - 1, 0)
                for pattern, part in patterns.items()
                if _compiles(pattern)
            }
        others = node.get("additionalProperties")
        if isinstance(others, bool):
            plain["additionalProperties"] = others
        elif isinstance(others, dict):
            plain["additionalProperties"] = self._plain(others, depth - 1, 0) or True

    def _options(self, node: JsonObject, depth: int) -> list[JsonObject]:
        listed: list[tuple[str, JsonValue]] = []
        for key in ("anyOf", "oneOf"):
            given = node.get(key)
            listed += [("", option) for option in (given if isinstance(given, list) else [])]
        chosen = node.get("discriminator")
        name = chosen.get("propertyName") if isinstance(chosen, dict) else None
        if not isinstance(name, str):
            return self._each(listed, depth, lambda label, option: option)
        assert isinstance(chosen, dict), "only an object has a property name"
        labels = _labels(chosen)
        if not listed:
            listed = self._children(labels)
        else:
            listed = [
                (labels.get(_reference(option)) or _tail(option), option) for _, option in listed
            ]

        def labelled(label: str, option: JsonObject) -> JsonObject:
            return _labelled(option, name, label)

        return self._each(listed, depth, labelled)

    def _each(
        self,
        listed: Sequence[tuple[str, JsonValue]],
        depth: int,
        change: Callable[[str, JsonObject], JsonObject],
    ) -> list[JsonObject]:
        return [change(label, self._plain(option, depth - 1, 0)) for label, option in listed]

    def _children(self, labels: dict[str, str]) -> list[tuple[str, JsonValue]]:
        """Return the schemas that inherit from the one being read: one of them is what is sent.

        There are none where a child is being read, of which this is only a part.
        """
        own = self._parents[-1] if self._parents else ""
        found: dict[str, str] = {ref: label for ref, label in labels.items() if ref != own}
        for name, schema in self._document.section("components", "schemas").items():
            parts = schema.get("allOf") if isinstance(schema, dict) else None
            if isinstance(parts, list) and any(_reference(part) == own != "" for part in parts):
                found.setdefault(f"#/components/schemas/{_escaped(name)}", name)
        if not found or set(found) & set(self._parents) or self._parents.count(own) > 1:
            return []
        itself: list[tuple[str, JsonValue]] = (
            [(labels[own], {"type": "object"})] if own in labels else []
        )
        return [*((label, {"$ref": ref}) for ref, label in found.items()), *itself]


def _labels(discriminator: JsonObject) -> dict[str, str]:
    """Return the label that a discriminator gives to each reference."""
    mapping = discriminator.get("mapping")
    given = mapping if isinstance(mapping, dict) else {}
    return {
        ref if "#" in str(ref) else f"#/components/schemas/{ref}": label
        for label, ref in given.items()
        if isinstance(ref, str)
    }


def _labelled(option: JsonObject, name: str, label: str) -> JsonObject:
    properties = option.get("properties")
    own = properties.get(name) if isinstance(properties, dict) else None
    if not label or not isinstance(properties, dict) or not isinstance(own, dict):
        return option
    options = own.get("enum")
    if isinstance(options, list) and label not in options:
        return option
    return {**option, "properties": {**properties, name: {**own, "enum": [label]}}}


def _with_options(plain: JsonObject, options: list[JsonObject]) -> JsonObject:
    """Return a schema that is one of `options`; a choice between one schema and null is merged."""
    real = [option for option in options if option.get("type") != "null"]
    if len(real) == 1 and len(options) <= 2:
        whole = merged([real[0], plain])
        return with_null(whole) if len(options) == 2 else whole
    return {**plain, "anyOf": [*options]}


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _reference(node: JsonValue) -> str:
    found = node.get("$ref") if isinstance(node, dict) else None
    return found if isinstance(found, str) else ""


def _tail(node: JsonValue) -> str:
    return _reference(node).rpartition("/")[2]


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1").replace("%", "%25")


def _meant(value: JsonValue, kinds: Sequence[str]) -> JsonValue:
    """Return a value of an enumeration, or a default, as the type beside it means it."""
    if not kinds or isinstance(value, dict | list | None):
        return value
    if isinstance(value, str):
        return value if "string" in kinds else _number_or_truth(value, kinds)
    if "string" not in kinds or (isinstance(value, bool) and "boolean" in kinds):
        return value
    if not isinstance(value, bool) and {"integer", "number"} & set(kinds):
        return value
    return written_as(value)


def _number_or_truth(text: str, kinds: Sequence[str]) -> JsonValue:
    if "boolean" in kinds and text in ("true", "false"):
        return text == "true"
    for kind, read in (("integer", int), ("number", float)):
        if kind in kinds:
            try:
                number = read(text)
            except ValueError:
                continue
            return number if number == number and abs(number) < 1e300 else text
    return text
