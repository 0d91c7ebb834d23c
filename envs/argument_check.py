"""Checks the arguments of a call against its tool's JSON schema, as far as the schema is valid.

`jsonschema` does the check, in draft 2020-12. Datasets contain careless schemas: keywords with a
senseless value and unknown types are ignored, and keys that a schema does not mention are allowed
unless it forbids them. Nothing is fetched: a `$ref` to another document allows everything.
"""

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from itertools import islice
from typing import Any, cast

import regex
from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from pydantic import JsonValue
from referencing import Registry
from referencing.exceptions import Unresolvable

from envs.schema_repair import repaired
from envs.tools import JsonObject, ToolSpec

_MAX_SHOWN = 80
_MAX_NAMES = 20
_MAX_ERRORS = 64
"""Errors among which the one to show is chosen."""
_CHECKERS = 512
"""Schemas whose checkers are kept."""
_SEARCH_S = 0.05
"""Seconds after which a regular expression counts as found: a schema must not hold up a run."""


def check_arguments(spec: ToolSpec, arguments: JsonObject) -> str | None:
    """Return a message for the policy about the first error in `arguments`, or None."""
    try:
        checker = _checker(json.dumps(spec.parameters))
        error = best_match(islice(checker.iter_errors(arguments), _MAX_ERRORS))
    except (Unresolvable, RecursionError, OverflowError):
        return None
    return None if error is None else _sentence(error)


@lru_cache(_CHECKERS)
def _checker(schema: str) -> Validator:
    return _Checker(repaired(json.loads(schema)), registry=Registry())


# Regular expressions that end


def _found(pattern: str, text: str) -> bool:
    try:
        return regex.search(pattern, text, timeout=_SEARCH_S) is not None
    except (regex.error, TimeoutError):
        return True


def _pattern(
    validator: Validator, pattern: str, instance: object, schema: JsonObject
) -> Iterator[ValidationError]:
    del validator, schema
    if isinstance(instance, str) and not _found(pattern, instance):
        yield ValidationError(f"expected text that matches {pattern}")


def _pattern_properties(
    validator: Any, patterns: JsonObject, instance: object, schema: JsonObject
) -> Iterator[ValidationError]:
    del schema
    if not isinstance(instance, dict):
        return
    for pattern, inner in patterns.items():
        for name, value in instance.items():
            if _found(pattern, name):
                yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _multiple_of(
    validator: Validator, step: float, instance: object, schema: JsonObject
) -> Iterator[ValidationError]:
    """In decimals: of binary numbers, 0.3 is no multiple of 0.1."""
    del validator, schema
    if not isinstance(instance, int | float) or isinstance(instance, bool):
        return
    try:
        whole = Decimal(str(instance)) % Decimal(str(step)) == 0
    except InvalidOperation:  # too many digits
        return
    if not whole:
        yield ValidationError(f"expected a multiple of {step}")


def _additional_properties(
    validator: Any, allowed: JsonValue, instance: object, schema: JsonObject
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    known = cast(JsonObject, schema.get("properties", {}))
    patterns = cast(JsonObject, schema.get("patternProperties", {}))
    for name, value in instance.items():
        if name in known or any(_found(pattern, name) for pattern in patterns):
            continue
        if allowed is False:
            yield ValidationError(name)
        else:
            yield from validator.descend(value, allowed, path=name)


_Checker = validators.extend(
    Draft202012Validator,
    {
        "multipleOf": _multiple_of,
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    },
)


# What the policy reads


_LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "more than {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "minProperties": "at least {} keys",
    "maxProperties": "at most {} keys",
    "pattern": "text that matches {}",
    "const": "{}",
}


def _sentence(error: ValidationError) -> str:
    path = _path(error.absolute_path)
    value, wanted = cast(JsonValue, error.instance), cast(JsonValue, error.validator_value)
    match error.validator:
        case "required":
            missing = [name for name in _names(wanted) if name not in cast(JsonObject, value)]
            return f"missing required argument {_join(path, missing[0])!r}"
        case "additionalProperties" if wanted is False:
            known = list(cast(JsonObject, cast(JsonObject, error.schema).get("properties", {})))
            shown = ", ".join(known[:_MAX_NAMES]) + (", ..." if len(known) > _MAX_NAMES else "")
            return f"unknown argument {_join(path, error.message)!r}; known: {shown or 'none'}"
        case "type":
            expected = " or ".join(_names([wanted] if isinstance(wanted, str) else wanted))
        case "enum":
            options = cast(list[JsonValue], wanted)
            shown = ", ".join(_json(option) for option in options[:_MAX_NAMES])
            expected = f"one of {shown}" + (", ..." if len(options) > _MAX_NAMES else "")
        case str(word) if word in _LIMITS:
            expected = _LIMITS[word].format(wanted if word == "pattern" else _shown(wanted))
        case word:
            expected = f"what {word} of its schema says"
    return f"argument {path!r}: expected {expected}, found {_shown(value)}"


def _names(value: JsonValue) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _path(parts: Iterable[str | int]) -> str:
    path = ""
    for part in parts:
        path = f"{path}[{part}]" if isinstance(part, int) else _join(path, part)
    return path


def _json(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shown(value: JsonValue) -> str:
    text = _json(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
