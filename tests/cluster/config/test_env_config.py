"""`[env]` in recipes, on the command line, and in the run directories of earlier versions."""

from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig, load_config, to_toml
from cluster.study.recipe import fingerprint
from envs.errors import ConfigError
from envs.tasksets.catalog.config import CatalogConfig, CatalogEnvConfig
from envs.tasksets.file.config import FileEnvConfig
from envs.tasksets.toolhop.config import ToolHopEnvConfig

EVERY_KEY = """
[env]
name = "{name}"
path = "{path}"
heldout_percent = 20
perturbation = "clean"
perturbation_seed = 0

[env.catalog]
tools = 5
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("catalog", CatalogEnvConfig(catalog=CatalogConfig(tools=5))),
        ("toolhop", ToolHopEnvConfig(path="x.json")),
        ("file", FileEnvConfig(path="x.json")),
    ],
)
def test_a_stored_config_may_have_the_keys_of_every_task_set(
    name: str, expected: object, tmp_path: Path
) -> None:
    stored = tmp_path / "config.toml"
    stored.write_text(EVERY_KEY.format(name=name, path="" if name == "catalog" else "x.json"))
    config = load_config(str(stored))
    assert config.env == expected
    stored.write_text(to_toml(config))
    assert load_config(str(stored)) == config
    assert ("[env.catalog]" in to_toml(config)) == (name == "catalog")


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("catalog", ["env.catalog.tools=1"], CatalogEnvConfig(catalog=CatalogConfig(tools=1))),
        ("catalog", ["env.path=x"], CatalogEnvConfig()),
        ("study", ["env.name=toolhop", "env.path=x"], ToolHopEnvConfig(path="x")),
        ("toolhop", ["env.name=file", "env.path=x"], FileEnvConfig(path="x")),
    ],
)
def test_the_task_set_and_its_keys_can_be_set(
    recipe: str, overrides: list[str], expected: object
) -> None:
    assert load_config(recipe, overrides).env == expected


@pytest.mark.parametrize("recipe", ["catalog", "toolhop", "file"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.pth=x", r"env\.pth: unknown key; did you mean env\.path\?"),
        ("env.catalog.tolls=1", r"env\.catalog\.tolls: unknown key; did you mean env\.catalog\.t"),
        ("env.tools=1", r"env\.tools: unknown key; did you mean "),
        ("catalog.tools=1", r"catalog\.tools: unknown key; did you mean "),
        (
            "env.name=catlog",
            r"env\.name: .*'toolhop', 'file'.* or a class .*\(found 'catlog'\)",
        ),
        ("env.catalog.tools=99", r"env\.catalog\.tools: .*less than or equal to 9 \(found 99\)"),
        ("env=3", "expected section.key=value"),
    ],
)
def test_a_wrong_key_is_named_whatever_the_task_set(
    recipe: str, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(recipe, [override])


def test_what_a_study_hashes_of_an_environment_stays() -> None:
    """A study's folders are matched by hash; these keys were hashed for every task set once."""
    for env in (CatalogEnvConfig(), ToolHopEnvConfig(), FileEnvConfig()):
        hashed = fingerprint(RunConfig(env=env), "env")
        assert isinstance(hashed, dict)
        assert hashed["env"] == {
            "name": env.name,
            "path": "",
            "catalog": CatalogConfig().model_dump(mode="json"),
            "heldout_percent": 20,
            "perturbation": "clean",
            "perturbation_seed": 0,
        }
