"""Standard output has what a command says, and nothing that threads of libraries print."""

import json
import sys
import threading
from pathlib import Path

import pytest
import typer
from rich.console import Console

from cluster.cli import main as cli
from cluster.cli.command_line import own_output
from envs.errors import ConfigError


def test_what_another_thread_prints_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sys.stdout
    with own_output():
        other = threading.Thread(target=print, args=("(raylet) a worker died",))
        other.start()
        other.join()
        sys.stdout.write(json.dumps({"a": 1}) + "\n")
        Console().print("a table")
        typer.echo("echoed")
        print("printed", flush=True)
    assert sys.stdout is before
    out, err = capsys.readouterr()
    assert out == '{"a": 1}\na table\nechoed\nprinted\n'
    assert err == "(raylet) a worker died\n"


def test_a_command_ends_with_its_own_output_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sys.stdout

    def app() -> None:
        assert sys.stdout is not before
        raise ConfigError("a [red]name[/] with \x1b[31m")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit):
        cli.main()
    assert sys.stdout is before
    assert "a [red]name[/] with \\x1b[31m" in capsys.readouterr().err
