"""`trialrun check`: a report of what a model meets, as text and as JSON."""

import json
import sys
from pathlib import Path

import pytest

from cluster.cli.main import main

ODD = Path(__file__).resolve().parents[2] / "envs" / "remote" / "odd_mcp_server.py"
TOOLS = '''
def add(a: int, b: int) -> int:
    """Add two numbers.

    Carries are kept.
    """
    return a + b
'''


@pytest.fixture
def world(tmp_path: Path) -> Path:
    (tmp_path / "tools.py").write_text(TOOLS)
    mcp = {"command": [sys.executable, "-I", str(ODD), "growing"], "state": "session"}
    rows = [
        {"id": "sum", "question": "What is 2 + 2?", "answer": 4, "scorer": "numeric"},
        {"id": "grow", "question": "What is the secret?", "answer": "42", "tools": {"mcp": mcp}},
    ]
    rows[0]["tools"] = {"functions": "tools.py"}
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    turns = {
        "sum": [{"name": "add", "arguments": {"a": 2, "b": 2}}, "<answer>4</answer>"],
        "file-grow": [{"name": "login", "arguments": {}}, {"name": "secret", "arguments": {}}],
    }
    (tmp_path / "turns.json").write_text(json.dumps(turns))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    capsys.readouterr()
    settings = ["model.path=tiny", "model.max_model_len=1024"]
    if not any(argument.startswith("episode.mode=") for argument in arguments):
        settings.append("episode.mode=direct")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["trialrun", "check", *arguments, *settings])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code, capsys.readouterr().out


def test_a_world_is_loaded_shown_and_played(
    world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    models = f"run.models_dir={tmp_path / 'models'}"
    play = ["--play", str(world / "turns.json"), models]
    code, out = run(capsys, str(world), *play, "--json")
    found = json.loads(out)
    assert (code, found["faults"]) == (0, [])
    assert [each["state"] for each in found["tool_sets"]] == ["sandbox", "session"]
    assert "Add two numbers.\\n\\nCarries are kept." in found["shown"]["prompt"]
    assert 0 < found["shown"]["tokens"] <= found["prompts"]["longest_tokens"] < 1_024
    first, second = found["played"]
    assert (first["outcome"], first["reward"]) == ("answered", 1.0)
    assert [c["result"] for turn in second["turns"] for c in turn["calls"]] == ["did login", "42"]

    assert first["remarks"] == []
    assert second["remarks"] == [
        "the turns end before the episode does: let the last one give an <answer>"
    ]

    code, out = run(capsys, str(world / "tasks.jsonl"), "--task", "grow", models)
    assert code == 0
    assert "Log in before anything else." in out
    assert "nothing is wrong" in out


def test_what_is_wrong_is_a_fault_and_an_exit_code(
    world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (world / "tools.py").write_text(
        f"import nowhere\nLONG = 0{TOOLS}".replace("Add", "Add " * 3_000)
    )
    models = f"run.models_dir={tmp_path / 'models'}"
    code, out = run(capsys, str(world), "--json", models)
    found = json.loads(out)
    assert code == 1
    assert "file-sum" in found["faults"][0] and "nowhere" in found["faults"][0]
    assert "model.max_model_len is 1024" in found["faults"][1]
    assert not found["tool_sets"][0]["loads"]


def test_turns_that_do_not_do_what_they_say_get_a_remark(
    world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    right = {"name": "add", "arguments": {"a": 2, "b": 2}}
    wrong = {"name": "add", "arguments": {"a": "two", "b": 2}}
    play = ["--play", str(world / "turns.json"), f"run.models_dir={tmp_path / 'models'}"]
    turns = {"sum": [wrong, right, "<answer>4</answer>", "<answer>5</answer>"]}
    (world / "turns.json").write_text(json.dumps(turns))
    code, out = run(capsys, str(world), *play)
    assert code == 0
    assert "remark: turn 1 is not valid: wrong arguments" in out
    assert "the policy is told: " in out and "two" in out.partition("the policy is told: ")[2]
    assert "remark: the episode ended after 3 of 4 turns" in out
    assert "2 remarks" in out.rpartition("rewards: file-sum ")[2]

    (world / "turns.json").write_text(json.dumps({"sum": [right, "<answer>4</answer>"]}))
    code, out = run(capsys, str(world), *play, "episode.mode=trial")
    assert "turn 2 answers before the trials have ended" in out


def test_an_unknown_task_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = run(capsys, str(world), "--task", "nobody", f"run.models_dir={world / 'models'}")
    assert code == 2


def test_without_its_model_a_world_is_shown_all_the_same(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = f"model.path={world / 'nowhere'}"
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["trialrun", "check", str(world), "--json", absent])
        with pytest.raises(SystemExit) as ended:
            main()
    found = json.loads(capsys.readouterr().out)
    assert (ended.value.code, found["prompts"]) == (0, {})
    assert "nowhere" in found["model"]
    assert '"name": "add"' in found["shown"]["prompt"]
