"""Demonstrations that a person wrote: played in the sandbox, filtered, refused with a reason."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.replay.replay_episodes import replay_run
from cluster.teachers.collect import run_collect
from envs.errors import ConfigError
from rollout.episode import Episode, Outcome
from rollout.episode_schema import from_batch
from rollout.store.run_reader import RunReader
from tests.rollout.conftest import make_tokenizer

TOOLS = 'def add(a: int, b: int) -> int:\n    """Add two numbers."""\n    return a + b\n'
ADD = {"name": "add", "arguments": {"a": 20, "b": 22}}
ANSWER = "<answer>42</answer>"
ROWS: list[dict[str, Any]] = [
    {"id": "sum", "split": "train"},
    {"id": "more", "split": "train"},
    {"id": "held", "split": "heldout"},
]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    (tmp_path / "tools.py").write_text(TOOLS)
    row = {"question": "What is 20 + 22?", "answer": 42, "tools": {"functions": "tools.py"}}
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps({**row, **own}) for own in ROWS))
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"max_position_embeddings": 100000}')
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    return tmp_path


def recipe(world: Path, turns: object, *assignments: str) -> RunConfig:
    (world / "turns.json").write_text(json.dumps(turns))
    return load_config(
        "file",
        [
            f"env.path={json.dumps(str(world))}",
            f"model.path={json.dumps(str(world / 'model'))}",
            "model.max_model_len=4096",
            "collect.source=turns",
            f"collect.turns={json.dumps(str(world / 'turns.json'))}",
            *assignments,
        ],
    )


def collected(world: Path, config: RunConfig, *, resume: bool = False) -> tuple[Any, list[Episode]]:
    out = world / "run"
    report = run_collect(config, out, resume=resume)
    reader = RunReader(out)
    return report, from_batch(reader.batch(list(reader.last_attempts())))


def test_turns_of_training_tasks_become_demonstrations(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = {"more": [ADD, ANSWER], "file-sum": [ADD, ANSWER], "held": [ADD, ANSWER]}
    config = recipe(world, turns, "episode.mode=direct", "tools.record=true")
    report, episodes = collected(world, config)
    assert "turns of file-held are not used" in capsys.readouterr().err
    assert {episode.lease.task for episode in episodes} == {"file-sum", "file-more"}
    assert {(e.outcome, e.reward, e.source) for e in episodes} == {(Outcome.ANSWERED, 1.0, "turns")}
    assert report["episodes"] == 2
    assert [call.result for episode in episodes for call in episode.calls] == ["42", "42"]
    replayed = asyncio.run(replay_run(world / "run", None))
    assert [replay.difference for replay in replayed.replays] == [None, None]


def test_they_have_trials_and_experience(world: Path) -> None:
    tried = {"name": "add", "arguments": {"a": 1, "b": 2}}
    turns = {
        "sum": [tried, "<experience>add adds</experience>", ADD, ANSWER],
        "more": [tried, "<experience>it is 42</experience>", ADD, ANSWER],
    }
    report, episodes = collected(world, recipe(world, turns))
    for episode in episodes:
        phases = [turn.phase.name for turn in episode.turns]
        assert phases == ["TRIAL", "EXPERIENCE", "EXECUTION", "EXECUTION"]
        assert episode.reward == 1.0
    assert (report["selected"], report["dropped"]) == (1, {"leaks_answer": 1})


def test_an_episode_that_goes_on_after_them_is_no_demonstration(world: Path) -> None:
    turns = {"sum": [ADD], "more": [ADD, ANSWER]}
    report, episodes = collected(world, recipe(world, turns, "episode.mode=direct"))
    (lost,) = (episode for episode in episodes if episode.lease.task == "file-sum")
    assert (lost.outcome, lost.reward) == (Outcome.INFRA_FAILED, None)
    assert "the turns that were written for task file-sum have ended" in lost.error
    assert (report["selected"], report["dropped"]) == (1, {"not_finished": 1})


def test_what_was_not_selected_is_told_with_its_task(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = {"sum": [ADD, "<answer>41</answer>"]}
    report, (episode,) = collected(world, recipe(world, turns, "episode.mode=direct"))
    said = capsys.readouterr().err
    assert "for example t000000-00 of file-sum: wrong, reward 0" in said
    assert "nothing was selected: look at an episode with: trialrun episodes" in said
    assert report["selected"] == 0
    assert RunReader(world / "run").episode("file-sum").lease == episode.lease


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ({}, "expected the turns of at least one task"),
        ([], "expected an object that maps a task to a list of turns"),
        ({"sum": ANSWER}, "maps a task to a list of turns"),
        ({"sum": []}, "maps a task to a list of turns"),
        ({"sum": [5]}, r"task 'sum', turn 1: expected a text, or a call .* found 5"),
        ({"sum": [{"arguments": {}}]}, "turn 1: expected a text, or a call"),
        ({"som": [ANSWER]}, "no task 'som'; the first is file-sum"),
        ({"sum": [ANSWER], "file-sum": [ANSWER]}, "task file-sum is there twice"),
        ({"held": [ANSWER]}, "file-held, which is in the heldout split"),
    ],
)
def test_a_file_that_has_no_such_turns_is_one_error(
    world: Path, turns: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        collected(world, recipe(world, turns, "episode.mode=direct"))
    assert not (world / "run").exists()


@pytest.mark.parametrize("source", ["turns", "scripted"])
def test_source_and_file_go_together(source: str) -> None:
    turns = [] if source == "turns" else ["collect.turns=turns.json"]
    with pytest.raises(ConfigError, match=r"expected collect\.turns \(--turns\)"):
        load_config("file", [f"collect.source={source}", *turns])


def test_tasks_without_end_have_no_names(world: Path) -> None:
    turns = f"collect.turns={json.dumps(str(world / 'turns.json'))}"
    config = load_config("catalog", ["model.path=tiny", "collect.source=turns", turns])
    model = config.model.model_copy(update={"path": str(world / "model")})
    with pytest.raises(ConfigError, match="which generates them without end"):
        run_collect(config.model_copy(update={"model": model}), world / "run", resume=False)


def test_a_collection_is_not_resumed_with_other_turns(world: Path) -> None:
    config = recipe(world, {"sum": [ADD, ANSWER]}, "episode.mode=direct")
    collected(world, config)
    assert len(collected(world, config, resume=True)[1]) == 1
    with pytest.raises(ConfigError, match=r"other contents of collect\.turns"):
        collected(world, recipe(world, {"more": [ADD, ANSWER]}, "episode.mode=direct"), resume=True)
