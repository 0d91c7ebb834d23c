"""Which keys a recipe may have, and what a misspelt one was probably meant to be."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import get_args

from pydantic import JsonValue, ValidationError

from envs.config import Section

LIKENESS = 0.6
"""Of two spellings, from 0 to 1, above which one may be meant by the other."""


def explain(error: ValidationError, origin: str, section: type[Section], under: str = "") -> str:
    """Return what is wrong in `origin`, a line per fault where there are several.

    `under` is where in the recipe the tree that should describe `section` stands.
    """
    faults = []
    for fault in error.errors():
        path = tuple(str(part) for part in fault["loc"])
        if path[-1:] == ("[key]",):
            faults.append(unknown_key(path[:-1], section, under))
        elif fault["type"] == "extra_forbidden":
            faults.append(unknown_key(_leaf(path, fault["input"]), section, under))
        else:
            reason = fault["msg"].removeprefix("Value error, ")
            key = _dotted(under, path) or "config"
            faults.append(f"{key}: {reason}{_found(fault['input'])}")
    return said_of(origin, faults)


def said_of(origin: str, faults: list[str]) -> str:
    """Return one line for one fault of `origin`, and a line each for several."""
    return f"{origin}: {faults[0]}" if len(faults) == 1 else "\n  ".join([f"{origin}:", *faults])


def unknown_key(path: tuple[str, ...], section: type[Section], under: str = "") -> str:
    """Return what to say of the key at `path`, which `section` (or one inside of it) lacks."""
    known, wrong = _keys_at(section, path)
    above = path[:wrong]
    said = f"{_dotted(under, path)}: unknown key"
    if near := get_close_matches(path[wrong], known, 1, LIKENESS):
        return f"{said}; did you mean {_dotted(under, (*above, *near, *path[wrong + 1 :]))}?"
    if elsewhere := [_dotted(under, other) for other in _paths(section) if other[-1] == path[-1]]:
        return f"{said}; did you mean {' or '.join(elsewhere)}?"
    return f"{said}; known keys are: {', '.join(sorted(known))}"


def stray_keys(
    tree: Mapping[str, JsonValue], section: type[Section], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Yield the path of every key of `tree` that `section` lacks; looks at no value."""
    for key, value in tree.items():
        field = section.model_fields.get(key)
        if field is None:
            yield _leaf((*above, key), value)
        elif (inner := _section_in(field.annotation)) is not None and isinstance(value, dict):
            yield from stray_keys(value, inner, (*above, key))


def _keys_at(section: type[Section], path: tuple[str, ...]) -> tuple[list[str], int]:
    """Return the keys that are known where `path` leaves what is known, and how deep that is."""
    depth = 0
    while depth < len(path) - 1 and (field := section.model_fields.get(path[depth])) is not None:
        key_type, value_type = (*get_args(field.annotation), None, None)[:2]
        if (inner := _section_in(field.annotation)) is not None:
            section, depth = inner, depth + 1
        elif (inner := _section_in(value_type)) is not None and depth + 2 < len(path):
            section, depth = inner, depth + 2  # a table of sections, by names of the recipe's own
        else:
            return [str(key) for key in get_args(key_type)], depth + 1
    return list(section.model_fields), depth


def _leaf(path: tuple[str, ...], value: object) -> tuple[str, ...]:
    """Return the path of the one key that `value` at `path` sets, or `path` if there are more."""
    while isinstance(value, dict) and len(value) == 1:
        key, value = next(iter(value.items()))
        path = (*path, str(key))
    return path


def _paths(section: type[Section], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, field in section.model_fields.items():
        yield (*above, key)
        if (inner := _section_in(field.annotation)) is not None:
            yield from _paths(inner, (*above, key))


def _section_in(annotation: object) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return None


def _dotted(under: str, path: tuple[str, ...]) -> str:
    return ".".join([*([under] if under else []), *path])


def _found(value: object) -> str:
    return "" if isinstance(value, dict | Section) else f" (found {value!r})"
