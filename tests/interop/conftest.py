"""`trialrun serve` as its own process, for foreign parties to speak with."""

import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START_S = 90.0
STOP_S = 15.0


class ServedEnvironment:
    """A running `trialrun serve` on a free port of loopback."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "from cluster.cli.main import main; main()",
                    "serve",
                    *arguments,
                ],
                bufsize=0,  # What is read ahead, select does not see.
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self.lines: list[str] = []
        deadline = time.monotonic() + START_S
        assert self.process.stdout is not None
        while not self.lines or not self.lines[-1].startswith("ready "):
            left = deadline - time.monotonic()
            readable = select.select([self.process.stdout], [], [], max(0.0, left))[0]
            line = self.process.stdout.readline().decode() if readable else ""
            if not line:
                self.process.kill()
                pytest.fail(f"no `ready` within {START_S:g} s: {log.read_text()}")
            self.lines.append(line.strip())
        [line] = [line for line in self.lines if line.startswith("openenv validate")]
        self.url = line.rpartition(" ")[2]
        """With the token that the server has drawn, as its own commands give it to clients."""

    def stop(self) -> int:
        """Ask the server to end; return its exit code."""
        self.process.terminate()
        return self.process.wait(STOP_S)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEnvironment]:
    """The catalog's first four training tasks, served."""
    log = tmp_path_factory.mktemp("serve") / "stderr.log"
    environment = ServedEnvironment(["catalog", "--tasks", "4"], log)
    yield environment
    assert environment.stop() == 0
    assert log.read_text() == ""
