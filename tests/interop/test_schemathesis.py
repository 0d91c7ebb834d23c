"""Schemathesis, from the OpenAPI document of a live tool server: no 5xx, and answers as stated."""

import subprocess
from pathlib import Path

import pytest

from envs.config import IsolationConfig, ToolServerConfig
from envs.server.process import ToolServerProcess

pytestmark = pytest.mark.real
CONFIG = ToolServerConfig(isolation=IsolationConfig(required="seccomp"))
EXCLUDED = "positive_data_acceptance"  # no schema can say that a digest must fit its content
EXAMPLES = 15


def test_no_answer_is_a_server_error(interop_bin: Path, tmp_path: Path) -> None:
    with ToolServerProcess(CONFIG, host="127.0.0.1", token="secret") as server:
        done = subprocess.run(
            [
                *(str(interop_bin / "schemathesis"), "run", f"{server.address}/openapi.json"),
                *("--header", "authorization: Bearer secret", "--seed", "1", "--no-color"),
                *("--max-examples", str(EXAMPLES), "--exclude-checks", EXCLUDED),
                *("--phases", "examples,coverage,fuzzing"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout[-8_000:]
        assert "Tested: 6" in done.stdout
        assert server.alive
        assert server.stderr() == ""
