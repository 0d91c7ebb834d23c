"""A tool server as a child process: started with a deadline, and ended with its parent."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from envs.config import ToolServerConfig
from envs.errors import DeadlineError, IsolationError, ToolServerError

_STOP_S = 5.0
_ROOT = Path(__file__).parents[2]


class ToolServerProcess:
    """One tool server on a UNIX socket in a private folder; a context manager.

    With `host` it listens on a free TCP port of that address instead, and requires `token`. With
    `replay` it runs no tools and answers from the record in that folder. The server ends when this
    process ends, for whatever reason.
    """

    def __init__(
        self,
        config: ToolServerConfig,
        start_timeout_s: float = 60.0,
        host: str = "",
        token: str = "",
        replay: Path | None = None,
    ) -> None:
        self._config = config
        self._start_timeout_s = start_timeout_s
        self._host = host
        self._token = token
        self._replay = replay
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._address = ""

    def __enter__(self) -> "ToolServerProcess":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """`unix:/path` or `http://host:port`; empty before the start."""
        return self._address

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it is ready.

        Raises IsolationError, ToolServerError (it exited) or DeadlineError.
        """
        self._folder = tempfile.TemporaryDirectory(
            prefix="trialrun-tools-", ignore_cleanup_errors=True
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "envs.server.main", "--exit-with-parent"),
                    *("--config-json", self._config.model_dump_json()),
                    *self._endpoint(Path(self._folder.name)),
                    *(("--replay", str(self._replay.resolve())) if self._replay else ()),
                ],
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,
            )
        try:
            self._address = self._await_ready(self._process)
        except (DeadlineError, IsolationError, ToolServerError):
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and its sessions; harmless if it has ended."""
        process, self._process = self._process, None
        if process:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()
        if self._folder:
            self._folder.cleanup()
            self._folder = None

    def stderr(self) -> str:
        """Return what the running server wrote to its standard error so far."""
        return self._log.read_text(errors="replace").strip()

    def _endpoint(self, folder: Path) -> list[str]:
        if not self._host:
            return ["--uds", str(folder / "socket")]
        words = ["--host", self._host, "--port", "0"]
        if not self._token:
            return words
        token = folder / "token"  # only this user can read the folder; all users can read arguments
        token.write_text(self._token)
        return [*words, "--token-file", str(token)]

    @property
    def _log(self) -> Path:
        if self._folder is None:
            raise ToolServerError("the tool server was not started: call start first")
        return Path(self._folder.name) / "stderr.log"

    def _await_ready(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], self._start_timeout_s)
        if not readable:
            raise DeadlineError(f"the tool server was not ready within {self._start_timeout_s:g} s")
        line = os.read(process.stdout.fileno(), 4_096).decode()
        if line.startswith("ready "):
            return line.removeprefix("ready ").strip()
        process.wait(_STOP_S)
        message = self.stderr()
        if IsolationError.__name__ in message:
            raise IsolationError(message)
        raise ToolServerError(f"the tool server exited with code {process.returncode}: {message}")
