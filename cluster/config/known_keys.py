"""Which keys a recipe may have, and what a misspelt one was probably meant to be."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import get_args, get_origin

from pydantic import JsonValue, ValidationError

from cluster.config.section_tree import (
    ANY_NAME,
    Path,
    Sections,
    annotation_of,
    below,
    keys_of,
    named_sections,
    places,
    without_choices,
)
from cluster.config.synonyms import alike, nearest, synonyms_of
from envs.config import Section

LIKENESS = 0.6
"""Smallest likeness of two spellings, from 0 to 1, at which one may be meant by the other."""
_FAR_LIKENESS = 0.8
"""The same for a key of another section."""
_MOST_SUGGESTED = 3
_Chosen = Mapping[Path, type[Section]]
"""The variant that a discriminator chose, by path."""


def explain(error: ValidationError, origin: str, section: type[Section], under: str = "") -> str:
    """Return what is wrong in `origin`, a line per fault where there are several.

    `under` is where in the recipe the tree that should describe `section` stands.
    """
    faults = []
    for fault in error.errors():
        place = tuple(str(part) for part in fault["loc"])
        path, chosen = without_choices(place, section)
        if path[-1:] == ("[key]",):
            faults.append(unknown_key(path[:-1], section, under, chosen))
        elif fault["type"] == "extra_forbidden":
            faults.append(unknown_key(_leaf(path, fault["input"]), section, under, chosen))
        else:
            reason = fault["msg"].removeprefix("Value error, ")
            key = _dotted(under, path) or "config"
            faults.append(f"{key}: {reason}{_found(fault['input'])}")
    return said_of(origin, faults)


def said_of(origin: str, faults: list[str]) -> str:
    """Return one line for one fault of `origin`, and a line each for several."""
    return f"{origin}: {faults[0]}" if len(faults) == 1 else "\n  ".join([f"{origin}:", *faults])


def unknown_key(
    path: Path, section: type[Section], under: str = "", chosen: _Chosen | None = None
) -> str:
    """Return an error about the key at `path`, which `section` (or one inside of it) lacks."""
    known, wrong = _keys_at(section, path, chosen or {})
    said = f"{_dotted(under, path)}: unknown key"
    meant = _meant(path, section, known, wrong)
    if meant:
        return f"{said}; did you mean {' or '.join(_dotted(under, other) for other in meant)}?"
    return f"{said}; known keys are: {', '.join(sorted(known))}"


def keys_meant_by(word: str, section: type[Section]) -> list[str]:
    """Return the keys that `word` alone, without a section, may mean; most likely ones first."""
    return [".".join(path) for path in _elsewhere(word, section, "")]


def stray_keys(
    tree: Mapping[str, JsonValue], section: type[Section], above: Path = ()
) -> Iterator[Path]:
    """Yield the path of every key of `tree` that `section` lacks; looks at no value."""
    yield from _stray_keys(tree, (section,), above)


def _stray_keys(tree: Mapping[str, JsonValue], sections: Sections, above: Path) -> Iterator[Path]:
    known = keys_of(sections)
    for key, value in tree.items():
        if key not in known:
            yield _leaf((*above, key), value)
        elif (inner := below(sections, key)) and isinstance(value, dict):
            yield from _stray_keys(value, inner, (*above, key))


def _meant(path: Path, section: type[Section], known: Sequence[str], wrong: int) -> list[Path]:
    """Return the keys that `path` may have been meant to name, most likely ones first."""
    above, word, rest = path[:wrong], path[wrong], path[wrong + 1 :]
    leaf, every = path[-1], _key_paths(section)
    if not rest:
        wanted = [*map(_split, synonyms_of(leaf)), *(p for p in every if p[-1] == leaf and above)]
        near = [other for other in wanted if other in every and other[: len(above)] == above]
        if near and above:
            return near
    names = ([] if rest else alike(word, known)) or get_close_matches(word, known, 1, LIKENESS)
    if names and rest:
        there = (*above, names[0], *rest)
        inner, depth = _keys_at(section, there, {})
        return [there] if there[depth] in inner else _meant(there, section, inner, depth) or [there]
    if names:
        return [(*above, name) for name in names[:_MOST_SUGGESTED]]
    return _elsewhere(leaf, section, path[0])


def _elsewhere(word: str, section: type[Section], near: str) -> list[Path]:
    """Return the keys of any section that `word` may mean; those within section `near` if any."""
    every = _key_paths(section)
    found = [path for path in every if path[-1] == word]
    found = found or [p for p in map(_split, synonyms_of(word)) if p in every]
    if not found:
        leaves = list(dict.fromkeys(path[-1] for path in every if len(path) > 1))
        names = get_close_matches(word, leaves, 1, _FAR_LIKENESS) or alike(word, leaves)
        found = [path for path in every if path[-1] in names]
    dotted = nearest([".".join(path) for path in found], near)
    return [_split(name) for name in dotted[:_MOST_SUGGESTED]]


def _split(name: str) -> Path:
    return tuple(name.split("."))


def _key_paths(section: type[Section]) -> Collection[Path]:
    """Return the path of every key, sections included, without names that a recipe chooses."""
    found: dict[Path, None] = {}
    for place in places(section):
        if ANY_NAME not in place.path:
            found |= dict.fromkeys((*place.path, name) for name in place.section.model_fields)
    return found


def _keys_at(section: type[Section], path: Path, chosen: _Chosen) -> tuple[list[str], int]:
    """Return the keys that are known where `path` leaves what is known, and how deep that is."""
    sections: Sections = (section,)
    depth = 0
    while depth < len(path) - 1 and path[depth] in keys_of(sections):
        annotation = annotation_of(sections, path[depth])
        if inner := below(sections, path[depth]):
            sections, depth = inner, depth + 1
        elif (inner := named_sections(annotation)) and depth + 2 < len(path):
            sections, depth = inner, depth + 2
        else:
            key_type = get_args(annotation)[0] if get_origin(annotation) is dict else None
            return [str(key) for key in get_args(key_type)], depth + 1
        if path[:depth] in chosen:
            sections = (chosen[path[:depth]],)
    return keys_of(sections), depth


def _leaf(path: Path, value: object) -> Path:
    """Return the path of the one key that `value` at `path` sets, or `path` if there are more."""
    while isinstance(value, dict) and len(value) == 1:
        key, value = next(iter(value.items()))
        path = (*path, str(key))
    return path


def _dotted(under: str, path: Path) -> str:
    return ".".join([*([under] if under else []), *path])


def _found(value: object) -> str:
    return "" if isinstance(value, dict | Section) else f" (found {value!r})"
