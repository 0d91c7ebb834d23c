"""The command line as a newcomer meets it: help, bad input, exit codes."""

import json
import shutil
from importlib import metadata
from pathlib import Path

import pytest

from cluster.cli.main import main
from envs.tasksets.toolhop.environment import OWN_TASKS
from learner.pretrained.tiny_model import build_tiny_model

_COMMANDS = (
    *("demo", "study", "doctor", "sft", "collect", "train", "audit", "eval", "serve", "estimate"),
    *("episodes", "scale", "compare", "plot", "replay-step"),
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def trialrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> "Command":
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)


class Command:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Run the command; returns exit code, standard output and standard error."""
        self._monkeypatch.setattr("sys.argv", ["trialrun", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err


def test_help_of_every_command_has_an_example(trialrun: Command) -> None:
    code, out, _ = trialrun("--help")
    assert code == 0
    assert "Begin with trialrun doctor" in out and "Exit codes: 0 ok" in out
    for name in _COMMANDS:
        assert name in out
        code, help_text, _ = trialrun(name, "--help")
        assert (code, "Example: trialrun " + name in help_text) == (0, True)


def test_the_version(trialrun: Command) -> None:
    assert trialrun("--version") == (0, f"trialrun {metadata.version('trialrun')}\n", "")


def test_help_says_where_results_go_and_where_keys_are_listed(
    trialrun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for command in ("sft", "train", "collect"):
        assert "RUN.DIR/RUN.NAME" in trialrun(command, "--help")[1]
    assert "`trialrun train RECIPE --dry-run` lists the keys" in trialrun("eval", "--help")[1]
    assert "TOML file with a section [study]." in trialrun("study", "--help")[1]
    assert "section [study] names the arms" in " ".join(trialrun("study", "--help")[1].split())


def test_a_dry_run_prints_the_resolved_recipe_and_starts_nothing(
    trialrun: Command, tmp_path: Path
) -> None:
    code, out, err = trialrun("train", "catalog", "--set", "run.seed=7", "--dry-run")
    assert (code, err) == (0, "")
    assert "seed = 7" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train", "catalog", "--set", "run.sede=1"), 2, "run.sede: unknown key"),
        (("train", "catalog", "--set", "episode.top_p=0.5"), 2, "expected episode.top_p = 1"),
        (("train", "nope"), 3, "no recipe called 'nope'"),
        (("train",), 2, "Missing argument"),
        (("fly",), 2, "No such command"),
        (("episodes", "nowhere"), 3, "nowhere"),
    ],
)
def test_bad_input_is_one_message_and_its_exit_code(
    trialrun: Command, arguments: tuple[str, ...], code: int, message: str
) -> None:
    found, out, err = trialrun(*arguments)
    assert (found, out) == (code, "")
    assert message in err


def test_broken_toml(trialrun: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[run]\nseed = ")
    code, _, err = trialrun("train", "mine.toml")
    assert (code, "mine.toml is not valid TOML" in err) == (2, True)


@pytest.mark.real
class TestWithTheStack:
    """Input that only the stack can judge; none of it gets as far as starting Ray."""

    def test_a_toolhop_file_with_a_missing_field(self, trialrun: Command, tmp_path: Path) -> None:
        tasks = json.loads(OWN_TASKS.read_text())
        del tasks[1]["functions"]
        (tmp_path / "tasks.json").write_text(json.dumps(tasks))
        code, _, err = trialrun("eval", "toolhop", "--set", "env.path=tasks.json")
        assert code == 2
        assert "functions" in err and "tasks.json" in err

    def test_a_toolhop_file_that_does_not_exist(self, trialrun: Command) -> None:
        code, _, err = trialrun("eval", "toolhop", "--set", "env.path=none.json")
        assert (code, "none.json" in err) == (3, True)

    def test_a_model_path_that_does_not_exist(self, trialrun: Command) -> None:
        code, _, err = trialrun("eval", "catalog", "--set", "model.path=no/such/model")
        assert (code, "no/such/model" in err) == (3, True)

    def test_a_template_that_cannot_extend_its_prefix(
        self, trialrun: Command, tmp_path: Path
    ) -> None:

        model = build_tiny_model(tmp_path / "model", 0)
        template = model / "chat_template.jinja"
        template.write_text("{{ messages | length }}" + template.read_text())
        for command in ("eval", "train"):
            code, _, err = trialrun(command, "catalog", "--set", f"model.path={model}")
            assert (code, "cannot extend its own prefix" in err) == (2, True)
        assert not (tmp_path / "runs").exists(), "refused before anything was written"
        shutil.rmtree(model)
