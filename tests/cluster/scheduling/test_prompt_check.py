"""Tasks whose prompt has no room are named before anything starts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.config.environments import make_environment
from cluster.config.run_config import RunConfig, load_config
from cluster.lifecycle.inputs import RunInputs
from cluster.scheduling.prompt_check import SAMPLED, check_some_prompts, tasks_with_room
from cluster.scheduling.task_sources import training_tasks
from cluster.training.train import run_train
from envs.errors import ConfigError
from learner.pretrained.resolve import resolve_model
from rollout.chat.template import ChatTemplate
from rollout.language import Language, format_of

InputsOf = Callable[[str, int], RunInputs]


@pytest.fixture(scope="module")
def inputs_of(tmp_path_factory: pytest.TempPathFactory) -> InputsOf:
    model = resolve_model("tiny", tmp_path_factory.mktemp("models"))

    def make(env: str, max_model_len: int) -> RunInputs:
        config = RunConfig.model_validate(
            {
                "model": {"max_model_len": max_model_len},
                "env": {"name": env},
                "episode": {"prompt": "compact", "max_tokens_per_turn": 8},
            }
        )
        return RunInputs(config, model, make_environment(config.env))

    return make


def lengths(inputs: RunInputs) -> dict[str, int]:
    """Tokens of the prompt of every training task, the shortest first."""
    template, episode = ChatTemplate.load(inputs.model), inputs.config.episode
    tasks = inputs.environment.tasks("train", 0, None)
    languages = {t.id: Language(template, format_of(template, "auto"), t, episode) for t in tasks}
    counted = {
        task: len(language.tokenise(language.opening())) for task, language in languages.items()
    }
    return dict(sorted(counted.items(), key=lambda pair: pair[1]))


def checked(inputs: RunInputs) -> str:
    return check_some_prompts(inputs, training_tasks(inputs.config, inputs.environment))


def test_training_skips_by_name_and_evaluation_refuses(inputs_of: InputsOf) -> None:
    found = lengths(inputs_of("toolhop", 100_000))
    longest, tokens = list(found.items())[-1]
    inputs = inputs_of("toolhop", tokens)
    said = checked(inputs)
    for text in (
        longest,
        f"{tokens} tokens",
        f"model.max_model_len = {tokens}",
        "They are skipped",
    ):
        assert text in said
    assert "raise it to more than" in said
    with pytest.raises(ConfigError, match=longest):
        tasks_with_room(inputs, inputs.environment.tasks("train", 0, None))


def test_what_fits_says_nothing(inputs_of: InputsOf) -> None:
    longest = max(lengths(inputs_of("toolhop", 100_000)).values())
    inputs = inputs_of("toolhop", longest + 1)
    assert checked(inputs) == ""
    tasks_with_room(inputs, inputs.environment.tasks("train", 0, None))


@pytest.mark.parametrize("env", ["toolhop", "catalog"])
def test_a_run_that_fits_nothing_is_refused(inputs_of: InputsOf, env: str) -> None:
    inputs = inputs_of(env, 20)
    with pytest.raises(ConfigError, match=r"model\.max_model_len = 20") as caught:
        checked(inputs)
    assert ("the first " in str(caught.value)) == (env == "catalog")
    assert env != "catalog" or f"{SAMPLED} of the first {SAMPLED} tasks" in str(caught.value)


def test_the_tiny_models_own_recipe_fits(inputs_of: InputsOf) -> None:
    assert checked(inputs_of("catalog", 512)) == ""


def test_the_command_is_refused_before_ray_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # would be another error
    config = load_config(
        "catalog",
        [
            f"run.dir={tmp_path / 'runs'}",
            f"run.models_dir={tmp_path / 'models'}",
            "model.max_model_len=20",
            "episode.max_tokens_per_turn=8",
        ],
    )
    with pytest.raises(ConfigError, match="leave no room to answer"):
        run_train(config, resume=False)
    assert not (tmp_path / "runs").exists()


def test_the_configuration_decides_what_is_skipped(inputs_of: InputsOf) -> None:
    longest, tokens = list(lengths(inputs_of("toolhop", 100_000)).items())[-1]
    inputs = inputs_of("toolhop", tokens)
    tasks = inputs.environment.tasks("train", 0, None)

    def decided(choice: str) -> RunInputs:
        episode = inputs.config.episode.model_copy(update={"long_prompts": choice})
        config = inputs.config.model_copy(update={"episode": episode})
        return RunInputs(config, inputs.model, inputs.environment)

    kept, said = tasks_with_room(decided("skip"), tasks)
    assert longest not in {task.id for task in kept}
    assert 0 < len(kept) < len(tasks)
    assert "left out of the evaluation" in said
    for choice in ("auto", "refuse"):
        with pytest.raises(ConfigError, match=longest):
            tasks_with_room(decided(choice), tasks)
    assert checked(decided("skip")) == checked(inputs)
    with pytest.raises(ConfigError, match=longest):
        checked(decided("refuse"))
