"""The world of docs/openapi.md: its files load as printed, and its questions can be answered."""

import json
import re
from pathlib import Path

from cluster.config.environments import make_environment
from cluster.config.run_config import load_config
from envs.tasks import Task
from tests.envs.sources.simulating import simulation
from tests.project_tree import ROOT

PAGE = (ROOT / "docs" / "openapi.md").read_text(encoding="utf-8")


def tasks(folder: Path) -> dict[str, Task]:
    fences = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S)
    texts = [text for kind, text in fences if kind in ("yaml", "json")]
    for name, text in zip(("api.yaml", "fixtures.json", "tasks.jsonl"), texts, strict=False):
        assert f"`rooms/{name}`" in PAGE
        (folder / name).write_text(text, encoding="utf-8")
    config = load_config("file", [f"env.path={folder}"])
    return {task.id: task for task in make_environment(config.env).all_tasks()}


def test_the_files_of_the_page_are_a_world(tmp_path: Path) -> None:
    found = tasks(tmp_path)
    assert list(found) == ["file-seats", "file-free", "file-take"]
    tool_set = found["file-take"].tool_set
    assert [tool.name for tool in tool_set.tools] == ["list_rooms", "get_room", "change_room"]
    assert [one.name for one in tool_set.left_out] == ["upload_photo"]


def test_the_questions_of_the_page_can_be_answered(tmp_path: Path) -> None:
    call = simulation(tasks(tmp_path)["file-seats"].tool_set)
    given = json.loads((tmp_path / "fixtures.json").read_text())["/rooms"]
    assert call("list_rooms") == given
    assert call("get_room", roomId=3) == given[2]
    assert given[2]["seats"] == 12
    assert call("list_rooms", floor=2, status="free") == [given[1]]
    assert given[1]["name"] == "Cedar"
    call("change_room", roomId=2, status="taken")
    assert call("list_rooms", status="free") == []
