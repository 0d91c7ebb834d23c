"""A file that a recipe names is compared by its content when the run is resumed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.lifecycle.input_files import edited_files, input_digests
from cluster.lifecycle.opening import Resume, check_run, new_run
from envs.errors import ConfigError
from rollout.store.run_layout import RunKind


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The files of a recipe, by the key that the refusal names."""
    model = tmp_path / "model"
    model.mkdir()
    found = {
        "model.chat_template": tmp_path / "chat.jinja",
        "model.path/tokenizer.json": model / "tokenizer.json",
        "model.path/generation_config.json": model / "generation_config.json",
        "env.path": tmp_path / "tasks.jsonl",
        "env.path/tools.py": tmp_path / "tools.py",
        "collect.turns": tmp_path / "turns.json",
    }
    for path in found.values():
        path.write_text("{}")
    row = {"question": "é" * 200, "tools": [{"file": "tools.py"}], "answer": "none.txt"}
    found["env.path"].write_text(f"{json.dumps(row)}\nno JSON\n")
    return found


@pytest.fixture
def config(tmp_path: Path, files: dict[str, Path]) -> RunConfig:
    places = (f"run.dir={tmp_path / 'runs'}", f"model.path={tmp_path / 'model'}")
    template = f"model.chat_template={files['model.chat_template']}"
    turns = ("collect.source=turns", f"collect.turns={files['collect.turns']}")
    return load_config("file", [*places, template, f"env.path={tmp_path}", *turns])


@pytest.mark.parametrize(
    "change", [lambda path: path.write_text("{ }\n" + path.read_text()), Path.unlink]
)
def test_an_edited_file_is_named_on_resume(
    config: RunConfig, files: dict[str, Path], change: Callable[[Path], object]
) -> None:
    with new_run(config.path, config, RunKind.COLLECT) as run:
        run.record_metrics(1, {"loss": 0.5})
    check_run(RunKind.COLLECT, config.path, config, Resume.REQUIRED)
    for key, path in files.items():
        before = path.read_text()
        change(path)
        with pytest.raises(ConfigError, match=rf"other contents of .*{key}\b.*: restore"):
            check_run(RunKind.COLLECT, config.path, config, Resume.REQUIRED)
        path.write_text(before)


def test_training_does_not_read_written_turns(config: RunConfig) -> None:
    assert "collect.turns" in input_digests(config, RunKind.COLLECT)
    assert "collect.turns" not in input_digests(config, RunKind.TRAIN)


def test_what_was_not_recorded_is_not_compared(config: RunConfig) -> None:
    assert edited_files({}, config) == []


def test_a_built_model_and_a_shipped_template_have_no_files() -> None:
    config = load_config("catalog", ["model.chat_template=chatml"])
    assert input_digests(config, RunKind.TRAIN) == {}
