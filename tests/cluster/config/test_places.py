"""Paths of a run: absolute in every process, and never in a folder that does not last."""

from pathlib import Path

import pytest

from cluster.config.places import (
    HOME,
    JOB_MARK,
    absolute_place,
    with_absolute_inputs,
    with_absolute_paths,
)
from cluster.config.run_config import load_config
from envs.errors import ConfigError

IN_JOB = {JOB_MARK: "{}"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_relative_places_are_below_the_working_folder_or_the_home(
    here: Path, tmp_path: Path
) -> None:
    config = load_config("catalog", ["run.models_dir=/models"])
    found = with_absolute_paths(config, {})
    assert (found.run.dir, found.run.models_dir) == (str(here / "runs"), "/models")
    assert found.path == here / "runs" / "catalog"
    assert with_absolute_paths(config, {HOME: str(tmp_path)}).run.dir == str(tmp_path / "runs")
    assert with_absolute_paths(found, IN_JOB) == found


def test_a_job_refuses_a_relative_place_with_the_line_to_type() -> None:
    config = load_config("catalog", ["run.dir=/shared/runs"])
    with pytest.raises(ConfigError) as refusal:
        with_absolute_paths(config, IN_JOB)
    assert "found run.models_dir=models" in str(refusal.value)
    assert "Type run.models_dir=/SHARED/models" in str(refusal.value)
    with pytest.raises(ConfigError, match="Type --out /SHARED/some/folder"):
        absolute_place("--out", Path("some/folder"), IN_JOB)
    assert absolute_place("--out", "x", {**IN_JOB, HOME: "/srv"}) == Path("/srv/x")


def test_inputs_that_exist_become_absolute_and_names_stay(here: Path, tmp_path: Path) -> None:
    for folder in (here / "tasks", tmp_path / "runs" / "sft" / "model", here / "tiny"):
        folder.mkdir(parents=True)
    (here / "own.jinja").touch()
    chosen = ["env.path=tasks", "model.path=runs/sft/model", "model.chat_template=own.jinja"]
    found = with_absolute_inputs(load_config("file", chosen), {HOME: str(tmp_path)})
    assert getattr(found.env, "path", "") == str(here / "tasks")
    assert found.model.path == str(tmp_path / "runs" / "sft" / "model")
    assert found.model.chat_template == str(here / "own.jinja")
    names = ["env.path=gone", "model.path=tiny", "model.chat_template=chatml"]
    config = load_config("file", names)
    assert with_absolute_inputs(config, {}) == config
    other = load_config("file", ["model.path=Qwen/Qwen2.5-0.5B"])
    assert with_absolute_inputs(other, {}) == other
