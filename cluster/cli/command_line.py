"""What the commands share: an option, late imports, printing a result, and an interruption."""

import json
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from cluster.fleet.ray_environment import prepare_environment
from cluster.progress import Progress
from envs.errors import ConfigError, TrialrunError
from envs.late_imports import import_late
from envs.tools import JsonObject
from rollout.transcript import inert


def version() -> str:
    """Return the version of trialrun."""
    try:
        return metadata.version("trialrun")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "from a checkout"


JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output.")
]

_RESUMED_BY_OPTION = ("train", "sft", "collect")
_RESUMED_AS_IS = ("study",)
_RESUMED_BY_RUN = ("eval",)


class Stopped(TrialrunError):
    """A command was interrupted with Ctrl-C; exit code 1."""


class Commands(TyperGroup):
    """The group of all commands: an interruption ends each of them in the same way."""

    def invoke(self, ctx: Any) -> Any:
        """Raises Stopped on Ctrl-C, also while the stack is being imported."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped(stopped_text(ctx.invoked_subcommand or "", sys.argv[1:])) from None


def stopped_text(command: str, arguments: Sequence[str]) -> str:
    """Return the line that an interrupted command prints: what is kept and how to resume."""
    again = f"trialrun {shlex.join(arguments)}"
    if command in _RESUMED_BY_OPTION:
        given = "--resume" in arguments or "--requeue" in arguments
        option = "" if given else " --resume"
        return f"stopped; finished work is kept; resume with: {again}{option}"
    if command in _RESUMED_AS_IS:
        return f"stopped; finished work is kept; resume with: {again}"
    if command in _RESUMED_BY_RUN:
        option = "" if "--run" in arguments else " --run RUN_DIRECTORY"
        return f"stopped; finished work is kept; resume with: {again}{option}"
    if command == "submit":
        return "no longer following; a job that was submitted goes on: see `trialrun runs`"
    return "stopped"


def stack(module: str, *, slow: bool = False) -> Any:
    """Import a module that needs the whole stack; it takes seconds, which help must not wait.

    `slow` is for modules that import torch and Ray: a line then says so.
    """
    prepare_environment()
    progress = Progress(quiet=not slow)
    progress.phase("loading torch and Ray")
    try:
        with interruptible():
            return import_late(f"cluster.{module}")
    except ImportError as error:
        raise ConfigError(
            f"the stack is not installed ({error}): type 'make setup', then 'trialrun doctor'"
        ) from error


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end if Ctrl-C was pressed in the block and had no effect.

    Modules of others that are being imported may swallow the exception, and the command would
    continue as if nothing had been pressed.
    """
    in_main = threading.current_thread() is threading.main_thread()  # only it receives signals
    # A shell starts a command in the background with the signal ignored; that is respected.
    if not in_main or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt


def report(result: JsonObject, *, as_json: bool) -> None:
    """Print what a command found: one line of JSON, or a table of two columns."""
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    table = Table(show_header=False, box=None)
    for key, value in result.items():
        table.add_row(Text(inert(key.replace("_", " "))), Text(inert(_cell(value))))
    Console().print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items()) or "-"
    if isinstance(value, list):
        return "; ".join(_cell(inner) for inner in value) or "-"
    return "-" if value is None else str(value)


@contextmanager
def own_output() -> Iterator[None]:
    """Send to standard error what threads of libraries print while the block lasts.

    Ray prints to standard output, in a thread of its own, that a worker died
    (`listen_error_messages` in its `_private/worker.py`). A program that reads the JSON of `--json`
    there could not parse it.
    """
    before = sys.stdout
    sys.stdout = _MainThreadOutput(before)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout = before


class _MainThreadOutput:
    def __init__(self, out: Any) -> None:
        self._out = out

    def write(self, text: str) -> int:
        return self._of_thread().write(text)

    def writelines(self, lines: Any) -> None:
        self._of_thread().writelines(lines)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def _of_thread(self) -> Any:
        mine = threading.current_thread() is threading.main_thread()
        return self._out if mine else sys.stderr
