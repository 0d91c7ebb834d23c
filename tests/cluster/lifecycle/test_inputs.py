"""Models and environments are resolved once per command: a server is asked for its tools once."""

import ast
import json
import sys
from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.teachers.collect import run_collect
from cluster.training.sft import run_sft
from envs.errors import ConfigError
from tests.project_tree import ROOT, imported_names, project_modules, tree_of

SERVER = ROOT / "tests" / "envs" / "remote" / "raw_mcp_server.py"
MAKERS = {
    "cluster/lifecycle/inputs.py": "for every command that runs episodes",
    "cluster/cli/serve.py": "serves tasks, without a model",
    "cluster/study/ceilings.py": "one environment per setting",
}
"""The only modules that may build an environment, and why."""


@pytest.fixture
def recipe(tmp_path: Path) -> RunConfig:
    """A recipe whose only task has the tools of an MCP server that notes each of its starts."""
    launcher = tmp_path / "launcher.py"
    launcher.write_text(
        "import runpy\n"
        f"with open({str(tmp_path / 'starts')!r}, 'a') as starts:\n"
        "    starts.write('started\\n')\n"
        f"runpy.run_path({str(SERVER)!r}, run_name='__main__')\n"
    )
    row = {
        "id": "count",
        "split": "train",
        "question": "Count once. What is the count?",
        "answer": 1,
        "tools": {"mcp": {"command": [sys.executable, "-I", str(launcher)]}},
    }
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row))
    places = (f"run.dir={tmp_path}", f"run.models_dir={tmp_path / 'models'}")
    settings = ("model.path=tiny", "model.max_model_len=1024", f"env.path={tmp_path}")
    return load_config("file", [*places, *settings])


def test_a_collection_asks_a_server_once(recipe: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no scripted teacher"):
        run_collect(recipe, tmp_path / "collected", resume=False)
    assert (tmp_path / "starts").read_text().splitlines() == ["started"]


def test_an_sft_asks_a_server_once(recipe: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no scripted teacher"):
        run_sft(recipe, [], resume=False)
    assert (tmp_path / "starts").read_text().splitlines() == ["started"]
    assert not recipe.path.exists(), "a start that failed leaves no run directory"


def test_only_these_modules_build_an_environment() -> None:
    makers = {
        path
        for path in project_modules()
        if path.startswith("cluster/")
        and "cluster.config.environments.environment_of" in imported_names(tree_of(path))
    }
    assert makers == MAKERS.keys()


def test_no_function_resolves_its_inputs_twice() -> None:
    twice = [
        f"{path}: {function.name}"
        for path in project_modules()
        if path.startswith("cluster/")
        for function in ast.walk(tree_of(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        and sum(
            isinstance(call, ast.Call) and ast.unparse(call.func) == "resolve_inputs"
            for call in ast.walk(function)
        )
        > 1
    ]
    assert twice == []
