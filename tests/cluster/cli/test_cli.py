"""The command line as a newcomer meets it: help, bad input, exit codes."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cluster.cli.arguments import read_config
from cluster.cli.command_line import stopped_text
from cluster.cli.main import app, main
from cluster.config.places import with_absolute_places
from cluster.config.run_config import load_config
from envs.tasksets.toolhop.environment import OWN_TASKS
from learner.pretrained.tiny_model import build_tiny_model

_COMMANDS = (
    *("demo", "study", "doctor", "sft", "collect", "train", "audit", "eval", "serve", "estimate"),
    *("episodes", "compare", "plot", "replay-step", "keys", "render"),
    *("submit", "runs", "status", "logs", "scale", "stop"),
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
    assert "Start with trialrun doctor" in out and "Exit codes: 0 ok" in out
    for name in _COMMANDS:
        assert name in out
        code, help_text, _ = trialrun(name, "--help")
        assert (code, "Example: trialrun " + name in help_text) == (0, True)


def examples() -> list[list[str]]:
    """Return the words of every example in the help of a command, without `trialrun`."""
    found = []
    for typed in (app, *(group.typer_instance for group in app.registered_groups)):
        assert typed is not None
        for command in typed.registered_commands:
            shown = re.findall(r"\[bold\](trialrun [^\[]+)\[/\]", str(command.epilog))
            assert shown, command.callback
            found += [shlex.split(text)[1:] for text in shown]
    return found


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_an_example_of_help_can_be_typed(words: list[str]) -> None:
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        unnamed = "serve" if command.name == "dashboard" else "show"
        name = words[0] if words[0] in command.commands else unnamed
        words = words[words[0] == name :]
        command = command.commands[name]
    given = command.make_context(command.name, list(words)).params
    if "recipe" in given:
        read_config(given["recipe"], given["assignments"], given["overrides"], "catalog")


def test_doctor_reads_the_recipe_also_for_a_machine(trialrun: Command) -> None:
    code, _, err = trialrun("doctor", "--recipe", "nowhere.toml")
    assert code == 3
    assert "no recipe file nowhere.toml" in err
    code, _, err = trialrun("doctor", "--set", "tools.isolation.required=everything")
    assert code == 2
    assert "tools.isolation.required" in err


def test_the_version(trialrun: Command) -> None:
    assert trialrun("--version") == (0, f"trialrun {metadata.version('trialrun')}\n", "")


def test_help_says_where_results_go_and_where_keys_are_listed(
    trialrun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for command in ("sft", "train", "collect"):
        assert "RUN.DIR/RUN.NAME" in trialrun(command, "--help")[1]
    assert "`trialrun keys` lists all keys" in trialrun("eval", "--help")[1]
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
        (
            ("train", "catalog", "foo"),
            2,
            "expected section.key=value after the recipe, found 'foo'",
        ),
        (("train", "catalog", "steps=3"), 2, "did you mean run.steps=3?"),
        (("train", "catalog", "learner.learning_rate=1"), 2, "did you mean learner.lr?"),
        (("train", "run.steps=3"), 2, "expected a recipe before 'run.steps=3'"),
        (("train", "catalog", "--steps", "3"), 2, "did you mean run.steps=3?"),
        (("train", "catalog", "--run.steps=3"), 2, "did you mean run.steps=3?"),
        (("demo", "--num-workers", "--json"), 2, "did you mean rollouts.workers=VALUE?"),
        (("eval", "catalog", "--frobnicate"), 2, "No such option: --frobnicate"),
        (("scale", "runs/x", "2x"), 2, "expected a number of workers"),
        (("scale", "runs/x", "+-2"), 2, "expected a number of workers"),
        (("scale", "runs/x", "-1"), 3, "runs/x"),
        (("scale", "runs/x", "0"), 2, "expected a number of workers"),
    ],
)
def test_bad_input_is_one_message_and_its_exit_code(
    trialrun: Command, arguments: tuple[str, ...], code: int, message: str
) -> None:
    found, out, err = trialrun(*arguments)
    assert (found, out) == (code, "")
    assert message in err


def test_values_are_set_with_and_without_the_option(trialrun: Command) -> None:
    code, out, err = trialrun(
        *("train", "catalog", "run.seed=7", "--dry-run", "--set", "run.steps=5", "run.name=a"),
    )
    assert (code, err) == (0, "")
    run = tomllib.loads(out)["run"]
    assert (run["seed"], run["steps"], run["name"]) == (7, 5, "a")


def test_a_dry_run_explains_every_key_in_a_comment(trialrun: Command) -> None:
    out = trialrun("eval", "demo", "--dry-run")[1]
    expected = with_absolute_places(load_config("demo"), {})
    assert tomllib.loads(out) == expected.model_dump(mode="json")
    assert "# Peak learning rate of AdamW.\nlr = " in out


def test_a_command_with_a_default_recipe_takes_values_first(trialrun: Command) -> None:
    out = trialrun("collect", "run.seed=7", "--dry-run")[1]
    assert tomllib.loads(out)["run"]["seed"] == 7


def test_keys_are_listed_by_section_name_and_synonym(trialrun: Command) -> None:
    code, out, _ = trialrun("keys", "rollouts", "--json")
    keys = [key["dotted"] for key in json.loads(out)["keys"]]
    assert code == 0 and "rollouts.workers" in keys
    assert all(key.startswith("rollouts.") for key in keys)
    assert "learner.lr" in trialrun("keys", "learning_rate")[1]
    assert "Deadline for an engine" in " ".join(
        trialrun("keys", "engine.start_timeout_s")[1].split()
    )
    code, _, err = trialrun("keys", "bogus")
    assert (code, "no configuration key matches 'bogus'" in err) == (3, True)


def test_an_interruption_is_one_line_that_says_how_to_resume() -> None:
    train = ["train", "catalog", "run.steps=3"]
    again = (
        "stopped; finished work is kept; resume with: trialrun train catalog run.steps=3 --resume"
    )
    assert stopped_text("train", train) == again
    assert stopped_text("train", [*train, "--resume"]) == again
    assert stopped_text("train", [*train, "--requeue"]).endswith("run.steps=3 --requeue")
    assert "goes on" in stopped_text("submit", ["submit", "catalog"])
    assert stopped_text("eval", ["eval", "file"]).endswith("trialrun eval file --run RUN_DIRECTORY")
    assert stopped_text("study", ["study", "--dir", "a b"]).endswith("trialrun study --dir 'a b'")
    assert stopped_text("plot", ["plot", "x"]) == "stopped"


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

    def test_ctrl_c_while_starting_up_is_one_line(self, tmp_path: Path) -> None:
        # Tests that run in the background of a shell inherit an ignored SIGINT.
        handled = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        code = handled + "from cluster.cli.main import main; main()"
        root = Path(__file__).parents[3]
        environ = os.environ | {"PYTHONPATH": str(root)}
        command = [sys.executable, "-c", code, "train", "catalog"]
        with subprocess.Popen(
            command, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            assert "loading" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            err = process.stderr.read()
        assert process.returncode == 1
        assert err == (
            "stopped; finished work is kept; resume with: trialrun train catalog --resume\n"
        )

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
