"""Commands that steer a running job: scale, pause, resume, checkpoint, stop."""

import os
import signal
import socket
import time
from getpass import getuser
from typing import Annotated, Any

import typer

from cluster.cli.command_line import JsonOption, report
from cluster.cli.jobs import AddressOption, RunName
from cluster.cli.mirrors import refuse_address
from cluster.cli.run_rows import job_row, run_row
from cluster.cli.run_target import Target, find_target
from cluster.cli.scale_argument import words_of, workers_wanted
from cluster.jobs.directories import status_of
from cluster.jobs.submission import steering
from cluster.lifecycle.trust import knows_writer
from cluster.lifecycle.writer import read_writer
from envs.errors import ConfigError, DeadlineError, InfraError, MissingError
from envs.tools import JsonObject
from rollout.store.control import (
    CheckpointRequest,
    ControlEvent,
    ControlRequest,
    PauseRequest,
    ResumeRequest,
    StopRequest,
    send_request,
)
from rollout.store.run_layout import RunLayout
from rollout.store.run_lock import is_written

TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=1, help="Seconds to wait for the job's answer.")
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Also wait until it has taken effect.")]
_STOP_S = 120.0
"""How long a job may take to end in order, in seconds."""
_ANSWER_S = 15.0
_EFFECT_S = 3600.0
"""How long `--wait` waits: an episode, a step or the start of a worker may take many minutes."""
_POLL_S = 0.2

app = typer.Typer()


@app.command(
    context_settings={"ignore_unknown_options": True},  # -1 is a number
    epilog="Example: [bold]trialrun scale first 4[/], or [bold]trialrun scale first +1[/], or of a "
    "group [bold]trialrun scale first big=2[/]",
)
def scale(
    run: RunName,
    workers: Annotated[
        Any,
        typer.Argument(
            parser=workers_wanted,
            metavar="[GROUP=]N|+N|-N",
            help="Target number of rollout workers, or by how many more or fewer.",
            show_default=False,
        ),
    ],
    abort: Annotated[
        bool,
        typer.Option(
            "--abort",
            help="End surplus workers at once; others run their episodes. Without it they finish "
            "them first, within rollouts.drain_timeout_s.",
        ),
    ] = False,
    wait: WaitOption = False,
    timeout_s: TimeoutOption = 30.0,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Change the number of rollout workers of a running training job.

    New workers start, load the current weights and receive work; surplus workers finish their
    episodes first. A resumed run keeps the number, unless its recipe has another one than before.
    With --wait it returns when the new workers serve, or the surplus ones are gone.
    """
    request = workers.model_copy(update={"abort": abort})
    report(_steer("scale", run, request, address, timeout_s, wait=wait), as_json=as_json)


@app.command(epilog="Example: [bold]trialrun pause first --wait[/]")
def pause(
    run: RunName,
    wait: WaitOption = False,
    timeout_s: TimeoutOption = 30.0,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let a running training job start no episode and no group until `trialrun resume`.

    Episodes that run are finished; with --wait it returns when the last one has ended. Workers and
    learner stay, and a step whose groups are complete is still trained. A job that is started
    again begins without the pause.
    """
    report(_steer("pause", run, PauseRequest(), address, timeout_s, wait=wait), as_json=as_json)


@app.command(epilog="Example: [bold]trialrun resume first[/]")
def resume(
    run: RunName,
    wait: WaitOption = False,
    timeout_s: TimeoutOption = 30.0,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """End the pause of a running job.

    A run that was stopped is resumed with `trialrun train RECIPE --resume`.
    """
    report(_steer("resume", run, ResumeRequest(), address, timeout_s, wait=wait), as_json=as_json)


@app.command(epilog="Example: [bold]trialrun checkpoint first --wait[/]")
def checkpoint(
    run: RunName,
    wait: WaitOption = False,
    timeout_s: TimeoutOption = 30.0,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let a running training job take a checkpoint: at once between two steps, else after the step.

    It counts among run.keep_checkpoints. With --wait it returns when the checkpoint is complete.
    """
    request = CheckpointRequest()
    report(_steer("checkpoint", run, request, address, timeout_s, wait=wait), as_json=as_json)


@app.command(epilog="Example: [bold]trialrun stop first[/]")
def stop(
    run: RunName,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until the job has ended.")
    ] = True,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Stop a running job gracefully: what it has finished is kept, and the same command resumes it.

    Exit code 3 if nothing runs.
    """
    refuse_address(run, "stop")
    target = find_target(run, address)
    if target.layout is not None and not is_written(target.layout):
        raise MissingError(
            f"expected a running job that writes to {target.layout.root}, found none"
        )
    job = target.job(needed=target.layout is None)
    if job is not None and not job.ended:
        target.jobs.stop(job)
        if wait:
            target.jobs.wait_for_end(job.id, _STOP_S)
    elif target.layout is not None:
        _stop_process(target.layout)
    found: JsonObject = job_row(job) if job is not None else {}
    if target.layout is not None:
        if wait:
            _wait_until_free(target.layout)
        found |= run_row(status_of(target.layout.root))
    report({**found, "state": "stopped" if wait else "stopping"}, as_json=as_json)


def _stop_process(layout: RunLayout) -> None:
    """Stop a job that is no Ray job, or whose cluster is out of reach. Raises DeadlineError."""
    try:
        _ask(layout, StopRequest(), _ANSWER_S)
    except DeadlineError:  # only training takes requests, once its workers run
        writer = read_writer(layout)
        here = writer is not None and writer.host == socket.gethostname() and writer.pid > 1
        if writer is None or not here or not knows_writer(layout):  # it names any process
            where = f"process {writer.pid} on {writer.host}" if writer else "its process"
            raise DeadlineError(
                f"the job on {layout.root} takes no requests now: end {where} with SIGTERM"
            ) from None
        os.kill(writer.pid, signal.SIGTERM)


def _steer(
    command: str,
    run: str,
    request: ControlRequest,
    address: str,
    timeout_s: float,
    *,
    wait: bool,
) -> JsonObject:
    """Send a request and return what the job answered. Raises ConfigError if it refuses."""
    refuse_address(run, command)
    target = find_target(run, address)
    if target.layout is None:
        _steer_there(target, command, request, timeout_s, wait=wait)
        return {"run_dir": target.job(needed=True).directory}
    answer = _ask(target.layout, request, timeout_s, _EFFECT_S if wait else None)
    workers = {} if answer.workers is None else {"workers": answer.workers}
    note = {"note": answer.note} if answer.note else {}
    return {"run_dir": str(target.layout.root), **workers, **note}


def _ask(
    layout: RunLayout,
    request: ControlRequest,
    timeout_s: float,
    effect_within_s: float | None = None,
) -> ControlEvent:
    """Send a request to the job that writes to a run. Raises ConfigError if it refuses."""
    event = ControlEvent(at=time.time(), actor=getuser(), request=request)
    answer = send_request(layout, event, timeout_s, effect_within_s=effect_within_s)
    if answer.refused:
        raise ConfigError(f"the job on {layout.root} refused: {answer.refused}")
    return answer


def _steer_there(
    target: Target, command: str, request: ControlRequest, timeout_s: float, *, wait: bool
) -> None:
    """Steer a run whose directory only the cluster sees: a short job there asks for it."""
    run = target.job(needed=True)
    words = [*words_of(request), *(["--wait"] if wait else [])]
    asked = target.jobs.submit(steering(command, run.directory, words, run.entrypoint))
    ended = target.jobs.wait_for_end(asked, timeout_s + (_EFFECT_S if wait else 60))
    if ended.status != "SUCCEEDED":
        said = target.jobs.logs(ended).strip()
        raise InfraError(f"the cluster did not {command} {run.run}: {said}")


def _wait_until_free(layout: RunLayout) -> None:
    until = time.monotonic() + _STOP_S
    while is_written(layout):
        if time.monotonic() > until:
            raise DeadlineError(
                f"the job that writes to {layout.root} did not end in {_STOP_S:g} s"
            )
        time.sleep(_POLL_S)
