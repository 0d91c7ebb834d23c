"""The recipe that a run directory holds, as a plain table: it is quoted, not obeyed.

A recipe that this version would refuse can still be quoted, so nothing is checked but the form:
TOML, with sections of values.
"""

import tomllib
from collections.abc import Mapping

from pydantic import JsonValue

from envs.errors import StoreError

Recipe = Mapping[str, Mapping[str, JsonValue]]
"""By section, by key. A date or a time of TOML is text."""


def parse_recipe(text: str, where: str) -> Recipe:
    """Return the sections of a recipe. Raises StoreError, which says `where` it was read."""
    try:
        found = tomllib.loads(text)
        return {
            section: {key: _plain(value) for key, value in inner.items()}
            for section, inner in found.items()
            if isinstance(inner, dict)
        }
    except RecursionError:
        raise StoreError(f"{where}: expected a recipe, found values nested too deeply") from None
    except ValueError as error:  # also an integer of too many digits
        raise StoreError(f"{where}: expected a recipe in TOML, found: {error}") from None


def names_in(recipe: Recipe, section: str, key: str, where: str) -> list[str]:
    """Return a list of names; empty where the recipe lacks it. Raises StoreError."""
    found = recipe.get(section, {}).get(key, [])
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return [str(name) for name in found]
    raise StoreError(f"{where}: expected a list of names as {section}.{key}, found {found!r:.200}")


def _plain(value: object) -> JsonValue:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool) else str(value)
