"""Recipes as editors save them, numbers that are none, and names that are no folders."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from cluster.config.run_config import RunConfig, load_config
from envs.errors import ConfigError
from envs.tasksets.file.config import FileEnvConfig
from envs.tasksets.file.environment import FileEnvironment
from envs.tasksets.outside import Outside
from envs.tasksets.registry import TASK_SETS
from envs.tasksets.toolhop.questions import read_questions
from envs.tasksets.toolhop.teacher import OWN_TASKS

MARK = "\ufeff"


def float_keys(section: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if annotation is float:
            yield f"{above}{name}"
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from float_keys(annotation, f"{above}{name}.")


KEYS = sorted(float_keys(RunConfig))


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(f"{MARK}# mine\r\n[run]\r\nname = 'caf\u00e9'\r\n".encode())
    with pytest.raises(ConfigError, match=r"run\.name"):
        load_config(str(path))
    path.write_text(f"{MARK}[run]\nname = 'mine'\n", encoding="utf-8")
    assert load_config(str(path)).run.name == "mine"


def test_tasks_and_tools_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        f'{MARK}def price(item: str) -> int:\n    """Price of an item."""\n    return 1\n',
        encoding="utf-8",
    )
    row = '{"id": "a", "question": "?", "answer": 1, "tools": {"functions": "shop.py"}}'
    (tmp_path / "tasks.jsonl").write_text(f"{MARK}{row}\n", encoding="utf-8")
    environment = FileEnvironment(
        FileEnvConfig(path=str(tmp_path)), Outside(list_tools=lambda place: pytest.fail())
    )
    (task,) = environment.all_tasks()
    assert [tool.name for tool in task.tool_set.tools] == ["price"]
    assert not any(MARK in source for source in task.tool_set.sources)
    copy = tmp_path / "ToolHop.json"
    copy.write_text(MARK + OWN_TASKS.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_questions(copy) == read_questions(OWN_TASKS)


def test_the_keys_are_found() -> None:
    assert len(KEYS) > 40 and {"learner.lr", "episode.trial.seconds"} <= set(KEYS)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("key", KEYS)
def test_a_number_that_is_not_finite_is_refused_by_its_key(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: .*found -?{value.removeprefix('-')}\)"):
        load_config("catalog", [f"{key}={value}"])


def test_floats_inside_of_other_values_are_finite_too() -> None:
    with pytest.raises(ConfigError, match=r"learner\.betas"):
        load_config("catalog", ["learner.betas=[0.9, inf]"])


@pytest.mark.parametrize("name", TASK_SETS)
def test_every_task_set_keeps_the_rule(name: str) -> None:
    assert TASK_SETS[name].section.model_config.get("allow_inf_nan") is False


@pytest.mark.parametrize(
    "name",
    [".", "..", "...", "", "a/b", "/a", "../a", "a\\b", "a\nb", "a\tb", "a\x00b", "a\n", "\u00e9"],
)
def test_a_name_that_is_no_folder_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        RunConfig.model_validate({"run": {"name": name}})


@pytest.mark.parametrize("name", ["run", "my-run_2.1", ".hidden", "..a", "a..", "-", "_"])
def test_other_names_stay(name: str) -> None:
    assert RunConfig.model_validate({"run": {"name": name}}).path.name == name
