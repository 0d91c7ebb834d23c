"""A dashboard beside a command that makes a run: on by default, ended with it, never waited for."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from getpass import getuser
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Annotated

import typer

from cluster.cli.command_line import version
from cluster.config.places import in_ray_job

DashboardOption = Annotated[
    bool | None,
    typer.Option(
        "--dashboard/--no-dashboard",
        envvar="TRIALRUN_DASHBOARD",
        help="Show the run in a dashboard while the command lasts. Default: yes, but not in a Ray "
        "job.",
        show_default=False,
    ),
]
_NEEDED = ("duckdb", "fastapi", "uvicorn")
_END_S = 5.0
"""How long it may take to end; then it is killed."""
_SHOWN = 300


@contextmanager
def dashboard_beside(
    folder: Path, environ: Mapping[str, str], *, wanted: bool | None
) -> Iterator[None]:
    """Serve a dashboard over `folder` in a process of its own while the block lasts.

    It prints its address when it is ready. Whatever becomes of it, the block is not disturbed.
    Without a choice, `wanted` of None, there is one except in a Ray job.
    """
    if not (not in_ray_job(environ) if wanted is None else wanted):
        yield
        return
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        _say(
            f"no dashboard: {missing[0]} is not installed; type pip install 'trialrun[dashboard]', "
            "or leave this line out with --no-dashboard"
        )
        yield
        return
    with TemporaryFile() as errors:
        companion = _Companion(folder, errors)
        companion.start()
        try:
            yield
        finally:
            companion.end()


class _Companion:
    def __init__(self, folder: Path, errors: IO[bytes]) -> None:
        self._folder, self._errors = folder, errors
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = False

    def start(self) -> None:
        """Start the process; a thread says its address, and if it ends early."""
        order = {
            "root": str(self._folder.absolute()),
            "parent": os.getpid(),
            "user": getuser(),
            "version": version(),
        }
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "cluster.dashboard.companion"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # Ctrl-C is for the command, which then ends it
            )
            assert process.stdin is not None
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            _say(f"no dashboard: its process did not start: {error.strerror}")
            return
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()

    def end(self) -> None:
        """End the process; at once where it does not within seconds."""
        self._ending = True
        if self._process is None:
            return
        with suppress(OSError):
            self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        with suppress(ValueError, OSError):  # closed meanwhile
            line = process.stdout.readline()
            if line:
                _say(f"dashboard  {json.loads(line)['url']}  (until this command ends)")
        process.wait()
        if not self._ending:
            _say(f"the dashboard ended, the run goes on without it. {self._last_error()}".rstrip())

    def _last_error(self) -> str:
        with suppress(ValueError, OSError):
            self._errors.seek(0)
            lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
            return lines[-1][:_SHOWN] if lines else ""
        return ""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
