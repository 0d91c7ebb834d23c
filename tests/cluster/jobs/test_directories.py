"""Runs found by name, and what their directories say about them."""

from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.jobs.directories import find_run, runs_below, status_of
from cluster.lifecycle.opening import Resume, new_run, open_run
from cluster.progress import QUIET
from envs.errors import ConfigError
from rollout.store.run_layout import RunKind, RunLayout


def recipe(folder: Path, name: str, *overrides: str) -> RunConfig:
    return load_config("catalog", [f"run.dir={folder}", f"run.name={name}", *overrides])


def made(config: RunConfig, kind: RunKind = RunKind.TRAIN) -> Path:
    new_run(config.path, config, kind).close()
    return config.path


def test_the_states_of_a_training_run(tmp_path: Path) -> None:
    config = recipe(tmp_path, "first", "run.steps=2")
    with open_run(RunKind.TRAIN, config.path, config, Resume.NO, QUIET) as run:
        assert status_of(config.path).state == "running"
    assert status_of(config.path).state == "failed start"
    with open_run(RunKind.TRAIN, config.path, config, Resume.NO, QUIET) as run:
        run.record_metrics(1, {"reward": 0.5, "workers": 2.0, "other": 1.0})
    stopped = status_of(config.path)
    assert (stopped.state, stopped.step, stopped.steps) == ("stopped", 1, 2)
    assert stopped.newest == {"reward": 0.5, "workers": 2.0}
    assert (stopped.model, stopped.checkpoint) == (None, None)
    layout = RunLayout(config.path)
    (layout.checkpoints / "000002").mkdir()
    (layout.checkpoints / "000002" / "complete").touch()
    assert status_of(config.path).state == "stopped"
    layout.model.mkdir()
    finished = status_of(config.path)
    assert (finished.state, finished.model) == ("finished", layout.model)
    assert finished.writer is not None


def test_a_run_is_found_by_its_path_its_name_or_its_place(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first, nested = made(recipe(runs, "first")), made(recipe(runs / "demo", "train"))
    made(recipe(runs / ".hidden", "lost"))
    assert runs_below(runs) == [nested, first]
    assert find_run("first", [runs]) == find_run(str(first), []) == first.resolve()
    assert find_run("train", [runs]) == find_run("demo/train", [runs]) == nested.resolve()
    assert find_run("lost", [runs]) is find_run("nowhere", [tmp_path / "gone"]) is None


def test_two_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    made(recipe(tmp_path / "a", "train"))
    made(recipe(tmp_path / "b", "train"))
    with pytest.raises(ConfigError, match="several runs are called 'train'") as refusal:
        find_run("train", [tmp_path])
    assert f"{tmp_path}/a/train, {tmp_path}/b/train" in str(refusal.value)


def test_a_path_in_the_working_folder_is_meant_before_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(recipe(tmp_path / "runs", "first"))
    here = made(recipe(tmp_path, "first"))
    monkeypatch.chdir(tmp_path)
    assert find_run("first", [tmp_path / "runs"]) == here
