"""Commands that read a run directory: one episode as JSON, and which steps there are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.cli.episode_views import check_step, episode_json, list_episodes
from cluster.cli.main import main
from envs.errors import MissingError
from rollout.episode import Lease, Outcome, RolloutKind
from rollout.episode_schema import to_batch
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo


@pytest.fixture
def run(tmp_path: Path, fleet: Any, numbered: Any) -> Path:
    """A run with one episode, `g000000-00`, and metrics of steps 1 and 2."""
    task = numbered.tasks("train", 0, 1)[0]
    lease = Lease(
        run="unit",
        episode="g000000-00",
        kind=RolloutKind.TRAIN,
        group="g000000",
        group_number=0,
        task=task.id,
        sample_index=0,
        attempt=0,
        seed=3,
    )
    episode = replace(fleet.play(lease, task, 0, "w"), tags={"depth": "1"})
    with RunDirectory.create(tmp_path / "run", "", RunInfo(run="unit", seed=0, created_at=0)) as it:
        it.append(to_batch([episode]))
        it.record_metrics(1, {"loss": 0.5})
        it.record_metrics(2, {"loss": 0.4})
    return tmp_path / "run"


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["trialrun", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_one_episode_is_one_json_object(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "episodes", str(run), "g000000", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == "" and out.count("\n") == 1
    assert found["lease"]["episode"] == "g000000-00"
    assert (found["outcome"], found["reward"], found["tags"]) == ("answered", 0.0, {"depth": "1"})
    assert found["phases_T"] == ["prompt", "trial", "execution"]
    assert found["logprobs_T"] == [None, -1.0, -1.0]


def test_without_the_option_it_is_a_transcript(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "episodes", str(run), "g000000") == 0
    assert "Episode g000000-00" in capsys.readouterr().out


def test_an_episode_without_a_reward_has_null(fleet: Any, numbered: Any) -> None:
    task = numbered.tasks("train", 0, 1)[0]
    lease = Lease(
        run="unit",
        episode="g-0",
        kind=RolloutKind.TRAIN,
        group="g",
        group_number=0,
        task=task.id,
        sample_index=0,
        attempt=0,
        seed=3,
    )
    failed = replace(fleet.play(lease, task, 0, "w"), outcome=Outcome.INFRA_FAILED, reward=None)
    assert episode_json(failed)["reward"] is None
    json.dumps(episode_json(failed), allow_nan=False)


def test_a_step_that_was_not_trained_is_refused_by_its_number(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_step(run, 2)
    assert command(monkeypatch, "replay-step", str(run), "99") == 3
    assert f"{run} has trained (1 to 2), found 99" in capsys.readouterr().err
    with pytest.raises(MissingError, match="found 0"):
        check_step(run, 0)


@pytest.mark.parametrize("text", ["[run", "steps = 1\n[run]\nsteps = 'x'", "x = " + "[" * 5_000])
def test_a_recipe_that_is_no_toml_ends_no_command_with_a_traceback(
    run: Path,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"kind": "train"}))
    (run / "config.toml").write_text(text)
    valid = "steps" in text
    assert command(monkeypatch, "status", str(run)) == (0 if valid else 1)
    error = capsys.readouterr().err
    assert valid or (error.count("error:") == 1 and "config.toml: expected a recipe" in error)
    assert command(monkeypatch, "runs", str(run.parent), "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert valid or row["state"] == "unreadable"
    assert command(monkeypatch, "episodes", str(run)) == 0


def test_a_name_in_a_list_of_episodes_is_no_markup(
    tmp_path: Path, fleet: Any, numbered: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    task = numbered.tasks("train", 0, 1)[0]
    name = "[bold]a[/] \x1b[31m\u202eb\nc"
    lease = Lease(
        run="unit",
        episode="[red]e[/]",
        kind=RolloutKind.TRAIN,
        group="g",
        group_number=0,
        task=name,
        sample_index=0,
        attempt=0,
        seed=3,
    )
    episode = fleet.play(lease, task, 0, "w")
    with RunDirectory.create(tmp_path / "run", "", RunInfo(run="unit", seed=0, created_at=0)) as it:
        it.append(to_batch([episode]))
    list_episodes(tmp_path / "run", "", 5, as_json=False)
    shown = capsys.readouterr().out
    assert "[red]e[/]" in shown and "[bold]a[/] \\x1b[31m\\u202eb c" in shown
    assert "\x1b" not in shown and "\u202e" not in shown
