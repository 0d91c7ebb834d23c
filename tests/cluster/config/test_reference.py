"""docs/reference.md: complete, up to date, and without a key that nobody explains."""

import tomllib
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from cluster.config.known_keys import explain, keys_meant_by, stray_keys
from cluster.config.reference import (
    REFERENCE,
    documented_toml,
    key_docs,
    matching,
    reference,
    section_docs,
    toml_value,
)
from cluster.config.run_config import RecipeKeys, load_config, recipe_names
from cluster.config.section_tree import places
from cluster.config.synonyms import SYNONYMS, alike, synonyms_of
from envs.config import Section


def test_the_reference_is_up_to_date() -> None:
    written = REFERENCE.read_text(encoding="utf-8")
    assert written == reference(), "run `python -m cluster.config.reference`"


def test_every_key_has_a_docstring_and_a_type() -> None:
    without = [key.dotted for key in key_docs() if not key.doc or key.kind == "value"]
    assert without == []
    assert [section.name for section in section_docs() if not section.doc] == []


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_key_of_a_resolved_recipe_is_in_the_reference(recipe: str) -> None:
    known = {key.dotted for key in key_docs()}
    missing: list[str] = []

    def walk(tree: dict[str, object], above: str) -> None:
        for name, value in tree.items():
            path = f"{above}{name}"
            if path not in known and isinstance(value, dict):
                walk(value, f"{path}.")
            elif path not in known:
                missing.append(path)

    walk(load_config(recipe).model_dump(mode="json"), "")
    assert missing == []


@pytest.mark.parametrize("recipe", recipe_names())
def test_comments_change_no_value(recipe: str) -> None:
    config = load_config(recipe)
    text = documented_toml(config)
    assert tomllib.loads(text) == config.model_dump(mode="json")
    assert all(len(line) <= 100 for line in text.splitlines() if line.startswith("#"))


def test_keys_are_found_by_section_by_name_and_by_description() -> None:
    assert {key.dotted for key in matching("[rollouts]")} >= {"rollouts.workers"}
    assert all(key.dotted.startswith("rollouts.") for key in matching("rollouts"))
    assert "learner.max_staleness" not in [key.dotted for key in matching("staleness")]
    assert [key.dotted for key in matching("max_staleness")] == ["rollouts.max_staleness"]
    assert "engine.enforce_eager" in [key.dotted for key in matching("CUDA graphs")]


def test_a_value_is_shown_as_toml_on_one_line() -> None:
    assert toml_value({"a": 0.5, "b": [1, "x"]}) == '{a = 0.5, b = [1, "x"]}'
    assert (toml_value(True), toml_value("x"), toml_value(())) == ("true", '"x"', "[]")


def test_every_synonym_leads_to_a_key() -> None:
    known = {(*place.path, name) for place in places(RecipeKeys) for name in _fields(place.section)}
    for word, keys in SYNONYMS.items():
        for key in keys:
            assert tuple(key.split(".")) in known, (word, key)


def _fields(section: type[Section]) -> list[str]:
    return list(section.model_fields)


def test_a_word_is_alike_by_its_initials_and_its_parts() -> None:
    keys = ["lr", "max_grad_norm", "clip_low", "clip_high", "seed"]
    assert alike("learning_rate", keys) == ["lr"]
    assert alike("mgn", keys) == ["max_grad_norm"]
    assert alike("clip", keys) == ["clip_low", "clip_high"]
    assert alike("x", keys) == alike("se", keys) == []
    assert synonyms_of("Learning-Rate") == ("learner.lr", "sft.lr")


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("steps", "run.steps"),
        ("lr", "learner.lr"),
        ("learning_rate", "learner.lr"),
        ("num_generations", "rollouts.group_size"),
        ("max_new_tokens", "episode.max_tokens_per_turn"),
        ("lora_rank", "model.lora.rank"),
    ],
)
def test_a_word_without_a_section_means_a_key(word: str, key: str) -> None:
    assert key in keys_meant_by(word, RecipeKeys)


class Inner(Section):
    """Inner."""

    depth: int = 1
    """Depth."""


class First(Section):
    """First."""

    name: Literal["first"] = "first"
    """Name."""
    path: str = ""
    """Path."""


class Second(Section):
    """Second."""

    name: Literal["second", "other"] = "second"
    """Name."""
    inner: Inner = Inner()
    """Inner."""
    length: int = 1
    """Length."""


class Recipe(Section):
    """A recipe whose environment is chosen by name."""

    env: Annotated[First | Second, Field(discriminator="name")] = First()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"name": "first", "pth": "x"}, "r: env.pth: unknown key; did you mean env.path?"),
        (
            {"name": "second", "inner": {"dpeth": 1}},
            "r: env.inner.dpeth: unknown key; did you mean env.inner.depth?",
        ),
        ({"name": "other", "lenght": 1}, "r: env.lenght: unknown key; did you mean env.length?"),
        (
            {"name": "second", "length": "x"},
            "r: env.length: Input should be a valid integer, unable to parse string as an integer "
            "(found 'x')",
        ),
    ],
)
def test_a_fault_in_a_section_chosen_by_name_has_its_plain_path(
    env: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError) as refusal:
        Recipe.model_validate({"env": env})
    assert explain(refusal.value, "r", Recipe) == message


def test_a_key_of_any_choice_is_no_stray_one() -> None:
    tree = {"env": {"path": "x", "inner": {"depth": 1, "width": 2}}}
    assert list(stray_keys(tree, Recipe)) == [("env", "inner", "width")]


def test_sections_chosen_by_name_are_told_apart() -> None:
    found = {(".".join(place.path), place.choice) for place in places(Recipe)}
    assert found == {
        ("", ""),
        ("env", 'name = "first"'),
        ("env", 'name = "second" or "other"'),
        ("env.inner", ""),
    }
