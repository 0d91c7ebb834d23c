"""Whether ranks see what the driver writes; a second node is a second folder here."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.fleet import shared_folder
from cluster.fleet.shared_folder import Question, answer, ask, check_answers, withdraw
from envs.errors import ConfigError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_folder, "PATIENCE_S", 0.0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def elsewhere(question: Question, folder: Path) -> Question:
    """Return the question as a rank understands it whose run directory is `folder`."""
    return replace(question, file=str(folder / Path(question.file).name))


def test_ranks_that_share_the_folder_pass_and_nothing_stays(tmp_path: Path, model: Path) -> None:
    question = ask(tmp_path, model)
    check_answers(question, [answer(question, rank) for rank in range(2)])
    withdraw(question)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_rank_with_another_folder_is_named_with_the_way_out(tmp_path: Path, model: Path) -> None:
    question = ask(tmp_path, model)
    (tmp_path / "far").mkdir()
    far = answer(elsewhere(question, tmp_path / "far"), 1)
    with pytest.raises(ConfigError, match=r"rank 1 on .* does not see") as refusal:
        check_answers(question, [answer(question, 0), far])
    assert "rank 0" not in str(refusal.value)
    assert "Add run.dir=/SHARED/runs run.models_dir=/SHARED/models" in str(refusal.value)


def test_a_rank_that_reads_a_copy_is_found_by_what_it_writes(tmp_path: Path, model: Path) -> None:
    question = ask(tmp_path, model)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / Path(question.file).name).write_text(question.text)
    answers = [answer(question, 0), answer(elsewhere(question, copy), 1)]
    with pytest.raises(ConfigError, match=r"rank 1 on .* writes to another"):
        check_answers(question, answers)


def test_a_rank_without_the_model_is_named(tmp_path: Path, model: Path) -> None:
    question = ask(tmp_path, model)
    (model / "config.json").write_text('{"another": "model"}')
    with pytest.raises(ConfigError, match=r"rank 0 on .* does not have the driver's model"):
        check_answers(question, [answer(question, 0)])
