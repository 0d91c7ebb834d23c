import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig, load_config, recipe_names, to_toml
from cluster.study.recipe import load_study
from envs.errors import ConfigError, MissingError
from envs.tasksets.toolhop.config import ToolHopEnvConfig


@pytest.mark.parametrize("recipe", recipe_names())
def test_shipped_recipes_resolve_and_their_toml_gives_them_back(
    recipe: str, tmp_path: Path
) -> None:
    config = load_config(recipe)
    written = tmp_path / "config.toml"
    written.write_text(to_toml(config))
    assert load_config(str(written)) == config
    assert set(tomllib.loads(to_toml(config))) == set(RunConfig.model_fields)


TOOLHOPS_LONGEST = 7
"""Hops of its longest questions; each needs a call of its own."""


@pytest.mark.parametrize("recipe", recipe_names())
def test_recipes_on_toolhop_leave_room_for_its_longest_questions(recipe: str) -> None:
    config = load_config(recipe)
    if isinstance(config.env, ToolHopEnvConfig):
        for budget in (config.episode.trial, config.episode.execution):
            assert budget.calls >= TOOLHOPS_LONGEST
            assert budget.turns > budget.calls  # the experience or the answer is a turn as well
            assert budget.tokens >= 40 * budget.turns


def test_overrides_are_toml_values_or_plain_strings() -> None:
    config = load_config(
        "toolhop",
        [
            "run.seed=3",
            "run.name=a-b",
            "learner.lr=1e-2",
            "episode.trial.calls=2",
            "env.path=x=y.json",
        ],
    )
    assert (config.run.seed, config.run.name, config.learner.lr) == (3, "a-b", 0.01)
    assert config.episode.trial.calls == 2
    assert config.env == ToolHopEnvConfig(path="x=y.json")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.sede=3", r"^recipe catalog: run.sede: unknown key; did you mean run.seed\?$"),
        ("run.zzz=3", "run.zzz: unknown key; known keys are: checkpoint_every, "),
        ("episode.trial.cals=3", r"cals: unknown key; did you mean episode.trial.calls\?"),
        ("leraner.lr=1", r"leraner.lr: unknown key; did you mean learner.lr\?"),
        (
            "optimiser.clip_low=1",
            r"clip_low: unknown key; did you mean learner.clip_low\?",
        ),
        ("learner.group_size=4", r"did you mean rollouts.group_size\?"),
        ("nowhere.x=3", "nowhere.x: unknown key; known keys are: cluster, .*, study, "),
        ("env.catalog.quirks={kee=1}", r"quirks.kee: unknown key; did you mean env.*quirks.key\?"),
        ("stduy.slots=1", r"stduy.slots: unknown key; did you mean study.slots\?"),
        ("run.seed=-1", r"run.seed: Input should be greater than or equal to 0 \(found -1\)"),
        ("run.seed=soon", r"run.seed: .*valid integer.* \(found 'soon'\)"),
        ("run=3", "expected section.key=value"),
        ("run.seed", "expected section.key=value"),
        ("run.seed.deep=3", "run.seed: "),
        ("episode.max_tokens_per_turn=100000", "must be below model.max_model_len"),
        (
            "rollouts.groups={b={gpus_per_worker=1,tensor_parallel_size=2}}",
            "set rollouts.groups.b.gpus_per_worker",
        ),
        ("rollouts.groups={default={workers=1}}", "choose another one"),
        ("rollouts.groups={Big={workers=1}}", "small letters"),
        ("rollouts.groups={b={labels={zone='in('}}}", r"expected a, !a, in\(a,b\)"),
        ("rollouts.groups.b.gpus=1", "did you mean rollouts.groups.b.gpus_per_worker?"),
        ("rollouts.groups.b.workers=0", r"a group of \[rollouts.groups\] must"),
        ("rollouts.workers=0", "must be at least 1"),
        ("cluster.tool_servers_per_node=2", "needs tool_placement 'node' or 'cluster'"),
        ("cluster.tool_node_resource=tools", "needs tool_placement 'cluster'"),
        ("tools.max_sessions=64", r"may open 128 tool sessions at once"),
    ],
)
def test_a_bad_override_names_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("catalog", [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.slotz=3", "study.slotz: unknown key; did you mean study.slots?"),
        ("study.seed=3", "study.seed: unknown key; known keys are: arms, "),
        (
            "study.models.direct.chagnes.run.seed=1",
            "unknown key; did you mean study.models.direct.changes.run.seed?",
        ),
        ("study.arms.direct.titel=x", "unknown key; did you mean study.arms.direct.title?"),
        (
            "study.arms.direct.changes.episode.trail.calls=1",
            "unknown key; did you mean study.arms.direct.changes.episode.trial.calls?",
        ),
        (
            "study.settings.easy.env.catalogue.tools=1",
            "unknown key; did you mean study.settings.easy.env.catalog.tools?",
        ),
        (
            "study.models.trail-grpo.changes.learner.lr=1",
            "no arm uses this model; did you mean study.models.trial-grpo?",
        ),
    ],
)
@pytest.mark.parametrize("load", [load_config, load_study])
def test_a_misspelt_key_of_a_study_is_an_error_of_every_command(
    load: Callable[[str, list[str]], object], override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        load("study", [override])
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("load", [load_config, load_study])
def test_known_keys_of_a_study_may_be_set(
    load: Callable[[str, list[str]], object],
) -> None:
    load("study", ["study.slots=1", "study.settings.seven.env.catalog.tools=7"])
    load("study", ["study.models.trial-grpo.changes.learner.lr=1e-3"])


def test_every_fault_is_said_on_a_line_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"^recipe catalog:\n  run.sede: .*\n  sft.lrr: .*$"):
        load_config("catalog", ["run.sede=1", "sft.lrr=2"])


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


def test_training_refuses_direct_episodes_without_a_weight() -> None:
    overrides = ["learner.phase_weights.execution=0", "episode.mode=trial"]
    load_config("catalog", overrides).check_trainable()
    with pytest.raises(ConfigError, match=r"phase_weights\.execution above 0 .* 'direct', found 0"):
        load_config("catalog", [*overrides, "episode.mode=direct"]).check_trainable()


@pytest.mark.parametrize(
    "override", ["episode.temperature=0", "episode.top_p=0.9", "episode.top_k=5"]
)
def test_training_refuses_sampling_it_cannot_correct(override: str) -> None:
    config = load_config("catalog", [override])
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        config.check_trainable()


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.lora.dropout=0.1"],
        ["learner.optimizer=muon", "learner.zero_stage=0", "model.dtype=float32"],
    ],
)
def test_training_refuses_what_adapters_cannot_be_trained_with(overrides: list[str]) -> None:
    config = load_config("qwen2.5-7b-lora", overrides)
    with pytest.raises(ConfigError, match=r"model\.lora"):
        config.check_trainable()


def test_groups_take_what_they_leave_out_from_the_sections_for_all() -> None:
    config = load_config(
        "catalog",
        [
            "cluster.cpus_per_worker=3",
            "engine.kv_cache_mib=96",
            "rollouts.episodes_per_worker=7",
            "rollouts.groups.big={workers=2,tensor_parallel_size=2,labels={zone='in(a,b)'}}",
            "rollouts.groups.small.cpus_per_worker=1",
        ],
    )
    groups = config.rollouts.groups
    assert config.rollouts.workers == 0, "groups take the place of the default workers"
    assert [groups[name].cpus_per_worker for name in ("big", "small")] == [3, 1]
    assert {(g.kv_cache_mib, g.episodes_per_worker) for g in groups.values()} == {(96, 7)}
    assert RunConfig.model_validate(tomllib.loads(to_toml(config))) == config
    assert (
        load_config(
            "catalog", ["rollouts.groups.a.workers=1", "rollouts.workers=2"]
        ).rollouts.workers
        == 2
    )


@pytest.mark.parametrize("key", ["run.deterministic=true", "cluster.transport=cuda_ipc"])
def test_what_needs_workers_of_one_kind_refuses_groups(key: str) -> None:
    with pytest.raises(ConfigError, match=r"found rollouts\.groups \(big\)"):
        load_config("catalog", ["rollouts.groups.big.workers=1", "rollouts.workers=1", key])
