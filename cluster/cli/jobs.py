"""Commands about runs as jobs: submit, runs, status, logs; names find runs."""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.arguments import (
    Assignments,
    DryRunOption,
    RecipeArgument,
    RecipeCommand,
    SetOption,
    TrustOption,
    read_config,
    stop_if_dry,
)
from cluster.cli.command_line import JsonOption, report, stack
from cluster.cli.mirrors import mirrored_rows, print_log
from cluster.cli.path_checks import check_model, check_tasks
from cluster.cli.run_rows import job_row, row_of, run_row
from cluster.cli.run_target import find_target
from cluster.config.places import home
from cluster.config.run_config import RunConfig
from cluster.jobs.directories import runs_below, status_of
from cluster.jobs.submission import this_program, training
from cluster.lifecycle.user_key import run_keys
from envs.errors import (
    ConfigError,
    InfraError,
    StoreError,
)
from envs.tools import JsonObject
from rollout.mirror.address import is_address
from rollout.store.regular_files import reading
from rollout.store.run_layout import RunLayout
from rollout.store.run_lock import is_written
from rollout.transcript import inert

RunName = Annotated[
    str,
    typer.Argument(help="Name of a run, its directory, or its mirror.", show_default=False),
]
AddressOption = Annotated[
    str,
    typer.Option(
        help="The cluster: http://HEAD:8265 (its dashboard) or HEAD:6379. Default: "
        "RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or the cluster that you started on this machine.",
        show_default=False,
    ),
]
_STOP_S = 120.0
"""How long a job may take to end in order, in seconds."""
_BLOCK = 1 << 20
_POLL_S = 0.2

app = typer.Typer()


@app.command(
    cls=RecipeCommand,
    epilog="Example: [bold]trialrun submit catalog --address http://head:8265 -- run.name=first[/]",
)
def submit(
    recipe: RecipeArgument,
    assignments: Assignments = None,
    address: AddressOption = "",
    program: Annotated[
        str,
        typer.Option(
            help="How trialrun is started on the head: `trialrun` in an image. Default: the path "
            "of this command, in a virtual environment that every node has at the same path.",
            show_default=False,
        ),
    ] = "",
    runtime_env: Annotated[
        str,
        typer.Option(
            "--runtime-env-json", help="Ray runtime_env to add, as JSON.", show_default=False
        ),
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the log until the job ends.")
    ] = True,
    overrides: SetOption = None,
    trust_run: TrustOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train on a Ray cluster, as a job; the same command resumes a run that was stopped.

    Only the resolved recipe is uploaded, with absolute paths: every node needs trialrun, the model
    and the tasks at the same paths, and a run.dir that all of them see.
    """
    config = read_config(recipe, assignments, overrides, trusted=trust_run)
    config.check_trainable()
    stop_if_dry(config, dry_run=dry_run)
    _check_inputs(config)
    words = program.split() or this_program()
    keys = run_keys(config.run.name, os.environ)
    job = training(config, words, _runtime_env(runtime_env), keys)
    jobs = stack("jobs.ray_jobs").RayJobs.at(address)
    for other in jobs.jobs():
        if not other.ended and other.directory == str(config.path):
            raise StoreError(
                f"the job {other.id} trains the run in {config.path} already: wait for its end, or "
                f"type `trialrun stop {config.run.name}`"
            )
    found = jobs.submit(job, config)
    result = {"job": found, "run_dir": str(config.path), "cluster": jobs.address}
    if as_json or not wait:
        report(result, as_json=as_json)
    if wait:
        name = config.run.name
        _say(f"job {found}, run directory {config.path}; Ctrl-C leaves it running:")
        _say(f"trialrun status {name} | logs {name} --follow | scale {name} N | stop {name}")
        _follow(jobs, found, sys.stdout.write)


@app.command(epilog="Example: [bold]trialrun runs[/], or [bold]trialrun runs /shared/runs[/]")
def runs(
    folder: Annotated[
        str,
        typer.Argument(
            help="Folder of run directories, or of mirrors, s3://BUCKET/PREFIX. Default: runs, "
            "below TRIALRUN_HOME if that is set.",
            show_default=False,
        ),
    ] = "",
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """List runs: those in a folder, and with --address (or RAY_ADDRESS) the jobs of a cluster."""
    below = Path(folder) if folder else home(os.environ) / "runs"
    mirrored = is_address(folder)
    found = mirrored_rows(folder) if mirrored else [row_of(path) for path in runs_below(below)]
    if not mirrored and (
        address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    ):
        seen = {str(row["run_dir"]) for row in found}
        jobs = stack("jobs.ray_jobs").RayJobs.at(address).jobs()
        for job in jobs:  # the newest first; one that was refused has no run
            if job.directory not in seen and not (job.ended and not job.directory):
                found.append(job_row(job))
                seen.add(job.directory)
    if as_json:
        report({"runs": [*found]}, as_json=True)
        return
    for row in found:
        step = f"step {row['step']}" + (f"/{row['steps']}" if row.get("steps") else "")
        _print(f"{row['name']:<24} {row['kind']:<8} {row['state']:<12} {step:<14} {row['run_dir']}")
    if not found:
        _say(f"no run in {folder or below}")


@app.command(epilog="Example: [bold]trialrun status first[/]")
def status(run: RunName, address: AddressOption = "", as_json: JsonOption = False) -> None:
    """Show whether a run is running, how far it is, where its files are, and its job."""
    target = find_target(run, address)
    found: JsonObject = run_row(status_of(target.layout.root)) if target.layout else {}
    job = target.job(needed=target.layout is None)
    if job is not None:
        found = {**job_row(job), **found, "job": job.id, "job_status": job.status}
        if job.message and job.ended:
            found["job_message"] = job.message
    report(found, as_json=as_json)


@app.command(epilog="Example: [bold]trialrun logs first --follow[/]")
def logs(
    run: RunName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print what comes, until the job ends.")
    ] = False,
    pattern: Annotated[
        str,
        typer.Option(
            "--grep",
            "-e",
            metavar="REGEX",
            help="Only lines with this regular expression, ignoring case.",
            show_default=False,
        ),
    ] = "",
    address: AddressOption = "",
) -> None:
    """Print the log of a run: of its job, or else of its directory."""
    write = _writer_of(pattern)
    if is_address(run):
        print_log(run, write, follow=follow)
        return
    target = find_target(run, address)
    job = target.job(needed=target.layout is None or not target.layout.log.exists())
    if job is None:
        assert target.layout is not None
        _print_log(target.layout, write, follow=follow)
    elif follow:
        _follow(target.jobs, job.id, write)
    else:
        write(target.jobs.logs(job))


Write = Callable[[str], object]


def _writer_of(pattern: str) -> Write:
    """Return what prints a log, without what would control a terminal: all of it, or the lines
    with `pattern`. Raises ConfigError.
    """
    if not pattern:
        return lambda text: sys.stdout.write(inert(text))
    try:
        wanted = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ConfigError(f"--grep {pattern!r} is no regular expression: {error}") from None
    begun = ""

    def write(text: str) -> None:
        nonlocal begun
        *lines, begun = (begun + text).split("\n")
        sys.stdout.writelines(f"{inert(line)}\n" for line in lines if wanted.search(line))

    return write


def _print_log(layout: RunLayout, write: Write, *, follow: bool) -> None:
    with TextIOWrapper(reading(layout.log), encoding="utf-8") as log:
        while True:
            ends = not (follow and is_written(layout))  # before the rest is read
            while text := log.read(_BLOCK):
                write(text)
            sys.stdout.flush()
            if ends:
                return
            time.sleep(_POLL_S)


def _follow(jobs: Any, submission_id: str, write: Write) -> None:
    """Print a job's log until it ends. Raises InfraError where it failed."""

    async def tail() -> None:
        async for lines in jobs.follow(jobs.job(submission_id)):
            write(lines)
            sys.stdout.flush()

    asyncio.run(tail())
    ended = jobs.wait_for_end(submission_id, _STOP_S)
    if ended.status == "FAILED":
        hint = (
            ": the head has no such program; name it with --program, `trialrun` in an image"
            if "exit code 127" in ended.message or "exited with code 127" in ended.message
            else ""
        )
        raise InfraError(f"the job {submission_id} failed{hint}. {ended.message}".strip())
    _say(f"the job {submission_id} ended: {ended.status.lower()}")


def _check_inputs(config: RunConfig) -> None:
    """Raise MissingError for a model or tasks that neither this machine nor the cluster can have.

    An absolute path may exist on the nodes alone, where the job looks again.
    """
    if not Path(config.model.path).is_absolute():
        check_model(config.model.path)
    if not Path(getattr(config.env, "path", "")).is_absolute():
        check_tasks(config)


def _runtime_env(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(f"--runtime-env-json {text!r} is not JSON: {error}") from None
    if not isinstance(found, dict) or "working_dir" in found:
        raise ConfigError(
            f"--runtime-env-json {text!r}: expected an object without working_dir, which holds the "
            "recipe"
        )
    return found


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
