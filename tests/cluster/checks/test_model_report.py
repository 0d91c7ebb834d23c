"""`trialrun doctor MODEL` on tiny model folders that are right, and wrong in one way each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.checks.doctor import Finding
from cluster.checks.model_report import examine_model, run_model_report
from cluster.config.run_config import load_config
from learner.pretrained.tiny_model import build_tiny_model

Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny", 0)


def report(model: Path, *overrides: str) -> dict[str, Finding]:
    config = load_config("", [f"model.path={model}", *overrides])
    return {finding.name: finding for finding in examine_model(config, 80.0)}


def write_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def drops_tools(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(
        f"{{%- set messages = messages | rejectattr('role', 'eq', 'tool') | list -%}}"
        f"{path.read_text()}"
    )


def shows_no_text(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|{{ m.role }}|> says something<|end|>{% endfor %}"
    )


def test_a_model_that_fits_has_a_row_for_every_check(tiny: Path) -> None:
    found = report(tiny)
    assert {row.status for name, row in found.items() if name != "round trip"} == {"ok"}
    assert {"weights", "chat template", "tool answers", "system role", "ends of turns"} < set(found)
    assert {"control tokens", "tool calls", "thoughts", "context", "learner"} < set(found)
    assert {"packing", "log-probabilities", "vLLM", "memory"} < set(found)
    assert "packed, alone and in plain transformers" in found["log-probabilities"].found


@pytest.mark.parametrize(
    ("edit", "row", "words"),
    [
        (only_bin, "weights", "safetensors"),
        (shows_no_text, "chat template", "the system text 0 times"),
        (lambda at: write_config(at, final_logit_softcapping=30.0), "learner", "softcapping"),
        (lambda at: write_config(at, num_hidden_layers=9), "learner", "num_hidden_layers"),
        (lambda at: write_config(at, intermediate_size=64), "learner", "other shapes"),
        (lambda at: write_config(at, max_position_embeddings=512), "context", "512"),
    ],
)
def test_what_is_wrong_is_named_once_and_the_rest_is_still_checked(
    tiny: Path, tmp_path: Path, edit: Edit, row: str, words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    edit(folder)
    found = report(folder)
    assert found[row].status == "missing"
    assert words in found[row].found
    assert len(found) > 5, "the other rows are there"


def test_tool_answers_that_a_template_drops_are_user_turns(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    drops_tools(folder)
    found = report(folder)["tool answers"]
    assert (found.status, "user turns" in found.found) == ("warn", True)


def test_the_exit_code_says_whether_the_model_can_be_used(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for positions, code in ((1024, 0), (100_000, 1)):
        overrides = [f"model.path={tiny}", f"model.max_model_len={positions}"]
        assert run_model_report(load_config("", overrides), 80.0, as_json=True) == code
        assert json.loads(capsys.readouterr().out)["ok"] == (code == 0)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    found = report(tmp_path / "nothing")
    assert [row.status for row in found.values()] == ["missing"]
