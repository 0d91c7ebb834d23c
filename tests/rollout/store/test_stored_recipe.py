"""The recipe in a run directory is quoted whatever it says; only what is no TOML is refused."""

import json

import pytest

from envs.errors import StoreError
from rollout.store.stored_recipe import names_in, parse_recipe


def test_sections_are_kept_and_dates_are_text() -> None:
    found = parse_recipe("loose = 1\n[run]\nsteps = 3\nday = 2026-01-02\nat = [07:30:00]\n", "here")
    assert found == {"run": {"steps": 3, "day": "2026-01-02", "at": ["07:30:00"]}}
    json.dumps(found)


@pytest.mark.parametrize(
    "text",
    ["[run", "x = 1\nx = 2", "x = " + "[" * 5_000, "x = " + "9" * 5_000, "x = 2026-13-40", "\x00"],
)
def test_what_is_no_toml_is_named(text: str) -> None:
    with pytest.raises(StoreError, match=r"^a/config\.toml: expected a recipe.*, found"):
        parse_recipe(text, "a/config.toml")


@pytest.mark.parametrize("value", ["3", '"depth"', "[1]", "{a = 1}"])
def test_names_are_a_list_of_texts(value: str) -> None:
    recipe = parse_recipe(f"[eval]\nby = {value}\nothers = ['a', 'b']\n", "here")
    assert names_in(recipe, "eval", "others", "here") == ["a", "b"]
    assert names_in(recipe, "eval", "none", "here") == []
    with pytest.raises(StoreError, match=r"^here: expected a list of names as eval\.by, found "):
        names_in(recipe, "eval", "by", "here")
