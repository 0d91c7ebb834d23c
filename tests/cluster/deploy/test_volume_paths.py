"""Paths of a recipe on the volume that pods share."""

import pytest

from cluster.config.run_config import load_config
from cluster.deploy.volume_paths import on_volume
from envs.errors import ConfigError

KNOWN = frozenset({"tiny", "qwen2.5"})


def test_relative_paths_are_on_the_volume() -> None:
    config = load_config("toolhop", ["model.path=models/own", "env.path=data/ToolHop.json"])
    placed, inputs = on_volume(config, KNOWN)
    assert placed.run.dir == "/srv/runs/runs"
    assert placed.run.models_dir == "/srv/runs/models"
    assert inputs == {
        "model.path": "/srv/runs/models/own",
        "env.path": "/srv/runs/data/ToolHop.json",
    }
    assert placed.model.path == inputs["model.path"]
    assert getattr(placed.env, "path", "") == inputs["env.path"]


def test_names_and_absent_paths_stay() -> None:
    config = load_config("catalog", ["model.path=tiny", "model.chat_template=qwen2.5"])
    placed, inputs = on_volume(config, KNOWN)
    assert (placed.model.path, placed.model.chat_template) == ("tiny", "qwen2.5")
    assert placed.tools.record_dir == ""
    assert not inputs


def test_a_path_on_the_volume_stays() -> None:
    placed, _ = on_volume(load_config("catalog", ["run.dir=/srv/runs/mine"]), KNOWN)
    assert placed.run.dir == "/srv/runs/mine"


@pytest.mark.parametrize("path", ["/data/models/own", "~/models/own", "../own", "/srv/runs/../x"])
def test_a_path_that_pods_do_not_see_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"expected model\.path .*volume"):
        on_volume(load_config("catalog", [f"model.path={path}"]), KNOWN)
