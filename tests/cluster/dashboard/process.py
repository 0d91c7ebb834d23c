"""`trialrun dashboard` as its own process."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

COMMAND = "from cluster.cli.main import main; main()"
START_S = 90.0


class DashboardProcess:
    """A running dashboard, and a client with its token."""

    def __init__(self, *arguments: str, environ: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "dashboard", *arguments, "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **(environ or {})},
        )
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], START_S)[0]:
            self.process.kill()
            raise AssertionError(f"no address within {START_S:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"it ended: {self.process.communicate()[1].decode()}")
        self.base, _, self.token = json.loads(line)["url"].partition("/#token=")
        headers = {"authorization": f"Bearer {self.token}"}
        self.client = httpx.Client(base_url=self.base, headers=headers, timeout=60.0)

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the JSON of a route below `/api/v1`."""
        found = self.client.get(f"/api/v1{path}", params=parameters)
        found.raise_for_status()
        return found.json()

    def stop(self) -> tuple[int, str]:
        """Ask it to end; return its exit code and what it said on standard error."""
        self.client.close()
        self.process.terminate()
        _, errors = self.process.communicate(timeout=30.0)
        return self.process.returncode, errors.decode()

    def kill(self) -> None:
        """Kill it as `kill -9` does."""
        self.client.close()
        self.process.kill()
        self.process.communicate(timeout=30.0)


def run_command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `trialrun dashboard` to its end."""
    return subprocess.run(
        [sys.executable, "-c", COMMAND, "dashboard", *arguments],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
