"""Candidate calls of a ToolHop tool, sampled from values in its schema and its question."""

import re
from collections.abc import Iterator, Sequence
from itertools import islice, product
from random import Random

from pydantic import JsonValue

from envs.tools import JsonObject, ToolSpec

_QUOTED = re.compile(r"(?<!\w)['\"`]([^'\"`]{1,60})['\"`](?!\w)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NAME = re.compile(
    r"\b[A-Z][\w'.-]*(?:,?\s+(?:(?:of|the|de|von|van|and|ii|iii|iv)\s+)*(?:[A-Z][\w'.-]*|\d+))*"
)
_MAX_DEPTH = 4
_OPTIONAL_SHARE = 0.5
_GRID = 64


def candidate_calls(
    spec: ToolSpec, texts: Sequence[str], limit: int, seed: int
) -> Iterator[JsonObject]:
    """Yield at most `limit` distinct arguments: a grid of the required ones, then random samples.

    Strings come from enumerations, defaults, examples, quotes in descriptions, and the names and
    numbers in `texts`; the same seed gives the same calls.
    """
    seen: set[str] = set()
    every_call = _all_calls(spec, _words(texts), Random(seed), limit)
    for arguments in islice(every_call, 4 * limit):
        key = repr(sorted(arguments.items()))
        if key not in seen:
            seen.add(key)
            yield arguments
        if len(seen) >= limit:
            return


def _all_calls(spec: ToolSpec, words: list[str], rng: Random, limit: int) -> Iterator[JsonObject]:
    properties = _properties(spec.parameters)
    required = [name for name in _required(spec.parameters) if name in properties]
    values = {name: _values(schema, words, _MAX_DEPTH) for name, schema in properties.items()}
    grid = product(*(values[name] for name in required))
    for chosen in islice(grid, min(_GRID, limit)):
        yield dict(zip(required, chosen, strict=True))
    while True:
        yield {
            name: rng.choice(options)
            for name, options in values.items()
            if name in required or rng.random() < _OPTIONAL_SHARE
        }


def _words(texts: Sequence[str]) -> list[str]:
    """Return short complete texts, then quotes and names (longest first), then numbers."""
    found: list[str] = []
    for text in texts:
        names = sorted(_NAME.findall(text), key=len, reverse=True)
        found += [*_QUOTED.findall(text), *names]
        if len(text) <= 60 and not text.endswith("?"):
            found.insert(0, text)
    found += [number for text in texts for number in _NUMBER.findall(text)]
    return list(dict.fromkeys(found)) or ["example"]


def _values(schema: JsonValue, words: list[str], depth: int) -> list[JsonValue]:
    """Return candidate values for a schema, at least one."""
    if not isinstance(schema, dict) or depth == 0:
        return list(words)
    named = _named_values(schema)
    types = schema.get("type")
    match types[0] if isinstance(types, list) and types else types:
        case "boolean":
            return [True, False]
        case "integer":
            return [*(v for v in named if isinstance(v, int)), *_integers(schema, words)]
        case "number":
            numbers = [v for v in named if isinstance(v, int | float)]
            return [*numbers, *map(float, _integers(schema, words))]
        case "array":
            options = _values(schema.get("items"), words, depth - 1)
            return [*([option] for option in options), options[:3]]
        case "object":
            inner = {
                name: _values(part, words, depth - 1) for name, part in _properties(schema).items()
            }
            rows = max(map(len, inner.values()), default=1)
            return [
                {name: options[row % len(options)] for name, options in inner.items()}
                for row in range(min(rows, 8))
            ]
        case _ if isinstance(schema.get("enum"), list):
            return named
        case _:
            description = schema.get("description")
            quoted = _QUOTED.findall(description) if isinstance(description, str) else []
            return list(dict.fromkeys([*words, *(str(value) for value in named), *quoted]))


def _named_values(schema: JsonObject) -> list[JsonValue]:
    """Return the values that the schema contains: its enumeration, else default and examples."""
    enum = schema.get("enum")
    if isinstance(enum, list) and enum:
        return enum
    examples = schema.get("examples")
    listed = examples if isinstance(examples, list) else []
    return [value for value in (schema.get("default"), schema.get("example"), *listed) if value]


def _integers(schema: JsonObject, words: list[str]) -> list[int]:
    low, high = schema.get("minimum"), schema.get("maximum")
    mentioned = [int(word) for word in words if word.isdigit() and len(word) < 10]
    usual = [*mentioned, 1, 0, 2, 10]
    least = low if isinstance(low, int | float) else -(10**9)
    most = high if isinstance(high, int | float) else 10**9
    fitting = [number for number in usual if least <= number <= most]
    return list(dict.fromkeys(fitting)) or [int(least)]


def _properties(schema: JsonObject) -> dict[str, JsonValue]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _required(schema: JsonObject) -> list[str]:
    required = schema.get("required")
    return (
        [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    )
