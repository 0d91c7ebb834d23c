"""What may differ where a run goes on, and what a run that went on with something else records."""

from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.lifecycle.opening import goes_on, new_run, open_run
from cluster.lifecycle.resume_check import check_same, differences
from cluster.progress import Progress
from envs.errors import ConfigError, MissingError, StoreError
from rollout.store.run_directory import RunDirectory


def recipe(folder: Path, *overrides: str) -> RunConfig:
    return load_config("catalog", [f"run.dir={folder}", "run.name=first", *overrides])


def test_every_key_that_differs_is_named_with_both_values(tmp_path: Path) -> None:
    before, now = recipe(tmp_path), recipe(tmp_path, "learner.lr=0.5", "env.catalog.depths={2=1.0}")
    assert differences(before, before) == []
    assert sorted(differences(before, now)) == [
        "env.catalog.depths.1 was 1.0, is unset",
        "env.catalog.depths.2 was unset, is 1.0",
        f"learner.lr was {before.learner.lr}, is 0.5",
    ]
    assert differences(before, now, ["learner"]) == differences(before, now, but=["env"])
    assert differences(before, now, ["learn", "run", "learner.lr_"]) == []


def test_a_refusal_lists_all_and_says_what_to_do_instead(tmp_path: Path) -> None:
    now = recipe(tmp_path, "run.seed=7", "learner.lr=0.5")
    with pytest.raises(ConfigError) as refusal:
        check_same("the run in r", recipe(tmp_path), now, ["run", "learner"], instead="start anew")
    said = str(refusal.value)
    assert said.startswith("the run in r was begun with other settings (run.seed was ")
    assert "; learner.lr was " in said
    assert said.endswith("): go on with the same ones, or start anew")


@pytest.mark.parametrize(
    "change",
    [
        "model.path=elsewhere",
        "env.perturbation=heavy",
        "episode.temperature=0.5",
        "run.seed=7",
        "rollouts.group_size=4",
        "learner.ranks=3",
        "learner.zero_stage=3",
        "learner.betas=[0.8, 0.9]",
    ],
)
def test_training_goes_on_with_the_same_tasks_episodes_and_optimizer(
    tmp_path: Path, change: str
) -> None:
    config = recipe(tmp_path)
    now = recipe(tmp_path, change)
    assert now != config
    key = change.partition("=")[0].replace(".", r"\.")
    with (
        new_run(config.path, config) as run,
        pytest.raises(ConfigError, match=rf"other settings \({key} was .*same ones, or choose"),
    ):
        goes_on(run, now, 2, Progress(quiet=True))


def test_other_changes_are_told_and_recorded_for_the_steps_that_they_are_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = recipe(tmp_path, "run.steps=4")
    then = recipe(tmp_path, "run.steps=8", "learner.lr=0.5")
    last = recipe(tmp_path, "run.steps=9", "learner.lr=0.25")
    new_run(first.path, first).close()
    for config, step in ((then, 4), (last, 4), (last, 8), (then, 8)):
        with RunDirectory.open(first.path) as run:
            goes_on(run, config, step, Progress())
    layout = run.layout
    used = {step: load_config(str(layout.config_of(step))) for step in (1, 4, 5, 8, 9)}
    assert used == {1: first, 4: first, 5: last, 8: last, 9: then}
    told = " ".join(capsys.readouterr().err.split())
    assert "going on after step 4 with other settings: run.steps was 4, is 8; learner.lr" in told
    assert told.count("going on") == 3


def test_a_run_that_moved_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = recipe(tmp_path / "a")
    new_run(config.path, config).close()
    (tmp_path / "a").rename(tmp_path / "b")
    moved = recipe(tmp_path / "b")
    with RunDirectory.open(moved.path) as run:
        goes_on(run, moved, 0, Progress())
    assert "going on" not in capsys.readouterr().err


def test_what_cannot_begin_leaves_nothing_behind(tmp_path: Path) -> None:
    models = f"run.models_dir={tmp_path / 'models'}"
    config, quiet = recipe(tmp_path, models), Progress(quiet=True)
    with pytest.raises(MissingError), open_run(config, quiet, resume=True):
        pass
    lost = recipe(tmp_path, models, "env.name=toolhop", "env.path=nowhere.json")
    with pytest.raises(MissingError, match="nowhere"), open_run(lost, quiet, resume=False):
        pass
    assert not config.path.exists()
    with open_run(config, quiet, resume=False) as run:
        run.record_metrics(1, {"loss": 0.5})
    with pytest.raises(StoreError, match="resume it"), open_run(config, quiet, resume=False):
        pass
    with open_run(config, quiet, resume=True) as run:
        assert run.path == config.path
