"""The tool format of a run: found once, recorded, and never changed by a resume."""

from pathlib import Path

import pytest

from cluster.config.run_config import load_config, to_toml
from cluster.lifecycle.inputs import resolve_inputs
from cluster.lifecycle.resume_rules import check_unchanged
from cluster.lifecycle.stored_config import stored_config
from envs.errors import ConfigError
from rollout.store.run_layout import RunKind

OLD_RUNS = Path(__file__).with_name("old_runs")


@pytest.mark.parametrize("kind", ["train", "eval", "collect"])
def test_a_run_of_an_older_version_was_asked_for_hermes_calls(kind: str) -> None:
    assert stored_config(OLD_RUNS / kind / "config.toml").model.tool_format == "hermes"


def test_a_recorded_format_is_read_as_it_is(tmp_path: Path) -> None:
    config = load_config("catalog", ["model.tool_format=glm"])
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert stored_config(tmp_path / "config.toml") == config


def test_a_command_records_the_format_that_it_found(tmp_path: Path) -> None:
    config = load_config("catalog", [f"run.models_dir={tmp_path}"])
    assert config.model.tool_format == "auto"
    assert resolve_inputs(config).config.model.tool_format == "hermes"


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("episode.prompt=template", "lists no tools"),
        ("episode.thoughts=drop", "marks thoughts"),
    ],
)
def test_what_a_template_cannot_do_is_refused_at_the_start(
    override: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve_inputs(load_config("catalog", [f"run.models_dir={tmp_path}", override]))


@pytest.mark.parametrize(("now", "same"), [("auto", True), ("hermes", True), ("llama3", False)])
def test_a_resumed_run_keeps_its_format(now: str, same: bool) -> None:
    before = stored_config(OLD_RUNS / "train" / "config.toml")
    section = before.model.model_copy(update={"tool_format": now})
    config = before.model_copy(update={"model": section})
    if same:
        check_unchanged(RunKind.TRAIN, "the run", before, config, "start another")
        return
    with pytest.raises(ConfigError, match=r"was 'hermes', is 'llama3'.*what the prompt"):
        check_unchanged(RunKind.TRAIN, "the run", before, config, "start another")
