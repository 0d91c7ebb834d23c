"""A mixture of experts all the way, in vLLM: the family whose push is the most complex."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from tests.project_tree import ROOT

LARGEST = 1e-3
CHECKED = ("Qwen3-MoE",)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.real
@pytest.mark.timeout(300)
def test_learner_and_engine_agree_before_and_after_a_push() -> None:
    """All families: `python -m tests.learner.families.engine_check`."""
    command = [sys.executable, "-m", "tests.learner.families.engine_check", *CHECKED]
    environment = os.environ | {"FAMILIES_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    results: list[dict[str, Any]] = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"family"')
    ]
    assert [result["family"] for result in results] == list(CHECKED), done.stderr[-3000:]
    for result in results:
        assert max(result["start"], result["pushed"], result["exported"]) < LARGEST, result
        assert result["greedy"] and not result["problem"], result
