"""What a submitted job consists of: its entry point, the little that is uploaded, its name."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from cluster.config.run_config import RunConfig, to_toml
from cluster.lifecycle.user_key import RUN_KEY

RECIPE = "recipe.toml"
"""The only file that is uploaded: the resolved configuration, with absolute paths."""
NAME, DIRECTORY, COMMAND = "trialrun_run", "trialrun_dir", "trialrun_command"
"""Keys of a job's metadata: name and directory of its run, and the command that makes it."""
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
_STOP_WAIT_S = "60"
"""Seconds that `ray job stop` leaves a job to end in order; Ray's own are 3."""
_RUNS = ("train", "sft", "eval", "collect", "demo", "study")
"""Commands that make a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job that is to be submitted."""

    entrypoint: str
    runtime_env: dict[str, JsonValue]
    metadata: dict[str, str] = field(default_factory=dict)


def training(
    config: RunConfig,
    program: Sequence[str],
    runtime_env: Mapping[str, JsonValue],
    keys: Sequence[bytes] = (),
) -> Submission:
    """Return the job that trains as `config` says, whose paths are absolute; resumes if need be.

    `program` starts trialrun on the cluster's head; `runtime_env` is added to the job's. `keys` are
    those of the run: on a node with another home the job has the user's no other way. Whoever
    submits it puts the folder that `write_upload` fills into `working_dir`.
    """
    words = [*program, "train", RECIPE, "--requeue"]
    given = runtime_env.get("env_vars")
    variables = {_STOP_WAIT: _STOP_WAIT_S, **(given if isinstance(given, dict) else {})}
    if keys:
        variables.setdefault(RUN_KEY, f"{config.run.name}={keys[0].hex()}")
    return Submission(
        entrypoint=shlex.join(words),
        runtime_env={**runtime_env, "env_vars": variables},
        metadata={NAME: config.run.name, DIRECTORY: str(config.path), COMMAND: "train"},
    )


def steering(command: str, run: str, words: Sequence[str], entrypoint: str) -> Submission:
    """Return the job that steers the run in the folder `run`, which only the cluster sees: with
    `command`, such as `scale`, and its further arguments.

    `entrypoint` is that of the run's own job, which knows how trialrun is started there.
    """
    words = [*program_of(entrypoint), command, run, *words]
    return Submission(entrypoint=shlex.join(words), runtime_env={})


def write_upload(config: RunConfig, folder: Path) -> None:
    """Write what the job needs to `folder`."""
    (folder / RECIPE).write_text(to_toml(config), encoding="utf-8")


def this_program() -> list[str]:
    """Return how trialrun is started here: by its path, which other nodes have too."""
    script = Path(sys.executable).parent / "trialrun"
    return [str(script)] if script.is_file() else [sys.executable, "-m", "cluster.cli.main"]


def program_of(entrypoint: str) -> list[str]:
    """Return the words of a job's entry point before its command; empty if it makes no run."""
    words = _words(entrypoint)
    places = [i for i, word in enumerate(words) if word in _RUNS and i > 0]
    named = [i for i in places if "trialrun" in words[i - 1] or words[i - 1].startswith("cluster")]
    return words[: named[0]] if named else []


def command_of(entrypoint: str) -> str:
    """Return the command of a job that makes a run, such as `train`; empty if it makes none."""
    program = program_of(entrypoint)
    return _words(entrypoint)[len(program)] if program else ""


def _words(entrypoint: str) -> list[str]:
    try:
        return shlex.split(entrypoint)
    except ValueError:  # a quotation that is not closed: not one of ours
        return []
