"""Tools that cannot be loaded are one message before a run; who sees what they change is said."""

import json
import sys
from pathlib import Path

import pytest

from cluster.config.environments import environment_of
from cluster.config.run_config import RunConfig
from cluster.scheduling.tool_check import check_tools, load_sets, sets_of, training_sample
from envs.errors import ConfigError
from envs.tools import JsonObject

ODD = Path(__file__).resolve().parents[2] / "envs" / "remote" / "odd_mcp_server.py"


def config_of(folder: Path, *tools: JsonObject, **env: object) -> RunConfig:
    rows = (
        {"id": f"t{n}", "question": "q", "answer": "a", "split": "train", "tools": each}
        for n, each in enumerate(tools)
    )
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return RunConfig.model_validate({"env": {"name": "file", "path": str(folder), **env}})


def test_python_that_cannot_be_loaded_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("def add(a: int) -> int: return a")
    (tmp_path / "bad.py").write_text("LIMIT = undefined\ndef add(a: int) -> int: return a")
    (tmp_path / "ends.py").write_text(
        "class Box:\n  def __init__(self): 1 / 0\n  def put(self): ..."
    )
    kinds: list[JsonObject] = [{"functions": "good.py"}, {"functions": "bad.py"}]
    config = config_of(tmp_path, *kinds, {"python": "ends.py"}, {"functions": "bad.py"})
    tasks = environment_of(config).all_tasks()
    errors = {each.tasks: each.error for each in load_sets(sets_of(tasks), config)}
    assert errors[("file-t0",)] == ""
    assert "name 'undefined' is not defined" in errors["file-t1", "file-t3"]
    assert "ZeroDivisionError" in errors[("file-t2",)]
    with pytest.raises(ConfigError, match="tools of 2 of 3 tool sets cannot be loaded") as found:
        check_tools(config, tasks)
    assert "task file-t1 and 1 more: " in str(found.value)
    assert check_tools(config, tasks[:1]) == []
    recording = config.tools.model_copy(update={"record": True})
    assert check_tools(config.model_copy(update={"tools": recording}), tasks[:1]) == []


@pytest.mark.parametrize("perturbation", ["clean", "union"])
def test_shared_state_and_what_was_left_out_are_said(tmp_path: Path, perturbation: str) -> None:
    command = [sys.executable, "-I", str(ODD)]
    shared: JsonObject = {"mcp": {"command": [*command, "listing"]}}
    own: JsonObject = {"mcp": {"command": [*command, "orders", "{scratch}/orders"]}}
    said: JsonObject = {"mcp": {"command": [*command, "errors"], "state": "session"}}
    config = config_of(tmp_path, shared, own, said, perturbation=perturbation)
    notes = check_tools(config, training_sample(config, environment_of(config)))
    assert len(notes) == 2
    assert "(+3 arguments) is shared: what one session changes, trials included" in notes[0]
    assert "{scratch}" in notes[0]
    assert "5 left out (no-schema, list-schema, number 4, ...)" in notes[1]


def test_a_server_that_fails_now_is_named(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(ODD.read_text())
    config = config_of(tmp_path, {"mcp": {"command": [sys.executable, "server.py", "errors"]}})
    tasks = environment_of(config).all_tasks()
    (tmp_path / "server.py").write_text("raise SystemExit('the licence has ended')")
    with pytest.raises(ConfigError, match="it said last: the licence has ended"):
        check_tools(config, tasks)


def test_generated_tasks_are_not_tried() -> None:
    config = RunConfig()
    assert training_sample(config, environment_of(config)) == []
