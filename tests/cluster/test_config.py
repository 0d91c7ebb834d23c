import tomllib
from pathlib import Path

import pytest

from cluster.config import RunConfig, load_config, recipe_names, to_toml
from envs.errors import ConfigError, MissingError


@pytest.mark.parametrize("recipe", recipe_names())
def test_shipped_recipes_resolve_and_their_toml_gives_them_back(
    recipe: str, tmp_path: Path
) -> None:
    config = load_config(recipe)
    written = tmp_path / "config.toml"
    written.write_text(to_toml(config))
    assert load_config(str(written)) == config
    assert set(tomllib.loads(to_toml(config))) == set(RunConfig.model_fields)


def test_overrides_are_toml_values_or_plain_strings() -> None:
    config = load_config(
        "catalog",
        [
            "run.seed=3",
            "run.name=a-b",
            "learner.lr=1e-2",
            "episode.trial.calls=2",
            "env.path=x=y.json",
        ],
    )
    assert (config.run.seed, config.run.name, config.learner.lr) == (3, "a-b", 0.01)
    assert (config.episode.trial.calls, config.env.path) == (2, "x=y.json")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.sede=3", "run.sede: unknown key; known keys are: checkpoint_every, "),
        ("episode.trial.cals=3", "episode.trial.cals: unknown key; known keys are: calls, seconds"),
        ("nowhere.seed=3", "nowhere: unknown key"),
        ("run.seed=-1", r"run.seed: Input should be greater than or equal to 0 \(found -1\)"),
        ("run.seed=soon", r"run.seed: .*valid integer.* \(found 'soon'\)"),
        ("run=3", "expected section.key=value"),
        ("run.seed", "expected section.key=value"),
        ("run.seed.deep=3", "run.seed: "),
        ("episode.max_tokens_per_turn=100000", "must be below model.max_model_len"),
        ("engine.tensor_parallel_size=2", "set cluster.gpus_per_worker"),
        ("cluster.tool_servers_per_node=2", "needs tool_placement 'node' or 'cluster'"),
        ("cluster.tool_node_resource=tools", "needs tool_placement 'cluster'"),
        ("tools.max_sessions=64", r"may open 128 tool sessions at once"),
    ],
)
def test_a_bad_override_names_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("catalog", [override])


def test_a_value_is_no_section() -> None:
    with pytest.raises(ConfigError, match="seed is a value, not a section"):
        load_config("catalog", ["run.seed=1", "run.seed.deep=3"])


def test_broken_toml_and_missing_recipes(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\nseed = 3")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML.*line 1"):
        load_config(str(broken))
    with pytest.raises(MissingError, match=r"shipped recipes are: catalog, demo, .*study, toolhop"):
        load_config("nope")
    with pytest.raises(MissingError, match="no recipe file"):
        load_config("missing.toml")


@pytest.mark.parametrize(
    "override", ["episode.temperature=0", "episode.top_p=0.9", "episode.top_k=5"]
)
def test_training_refuses_sampling_it_cannot_correct(override: str) -> None:
    config = load_config("catalog", [override])
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        config.check_trainable()
