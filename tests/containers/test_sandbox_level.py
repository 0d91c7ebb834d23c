"""The isolation level that tool code gets inside containers, measured on the tools image.

The short part: it runs wherever a container engine answers, else it is skipped with that word.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.containers.engine import (
    base_image,
    build,
    docker,
    engine_answers,
    ready_base,
    wait_for,
)

_NEEDS_ENGINE = pytest.mark.skipif(
    not engine_answers(), reason="no container engine answers `docker info`"
)
pytestmark = [pytest.mark.real, pytest.mark.timeout(1500), _NEEDS_ENGINE]

IMAGE = "trialrun-tools:0.1.0"
_ASK = (
    "import httpx\n"
    "headers = {'authorization': 'Bearer secret'}\n"
    "answer = httpx.get('http://127.0.0.1:8300/health', headers=headers)\n"
    "print('isolation', answer.json()['isolation'])"
)
POD = ("--cap-drop", "ALL", "--security-opt", "no-new-privileges")
"""What a pod under the pod security standard `restricted` gets, with the engine's own profile."""
PROFILE = Path("/usr/share/containers/seccomp.json")
"""The seccomp profile of Podman, which allows namespaces: in the package containers-common."""


@pytest.fixture(scope="module", autouse=True)
def _image() -> None:
    if not ready_base() and not os.environ.get("TRIALRUN_CONTAINERS"):
        pytest.skip("no base image is here or can be pulled: `make containers` makes one")
    build("tools", BASE_IMAGE=base_image())


def level(options: Sequence[str]) -> str:
    """Start the tool server in a container with `options`, and return its isolation's summary."""
    started = ("run", "--detach", "--env", "TRIALRUN_TOOLS_TOKEN=secret", *options, IMAGE)
    container = docker(*started).strip().splitlines()[-1]
    try:
        wait_for("a ready tool server", lambda: "ready" in docker("logs", container), 60)
        shown = docker("exec", container, "python", "-c", _ASK)
    finally:
        docker("rm", "--force", container)
    return next(line for line in shown.splitlines() if line.startswith("isolation ")).split()[1]


@pytest.mark.parametrize(
    "options",
    [(), POD, (*POD, "--read-only", "--tmpfs", "/tmp"), (*POD, "--cap-add", "SYS_ADMIN")],
    ids=["default", "pod", "read-only", "sys-admin"],
)
def test_a_default_container_gives_landlock_and_no_namespaces(options: Sequence[str]) -> None:
    assert level(options) == "landlock/compute"


def test_the_servers_user_is_not_root_and_has_no_capabilities() -> None:
    code = "import os; print('user', os.getuid()); print(open('/proc/self/status').read())"
    shown = docker("run", "--rm", *POD, IMAGE, "python", "-c", code)
    assert "user 10001" in shown
    fields = dict(line.split(":\t", 1) for line in shown.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_a_profile_that_allows_namespaces_gives_the_strongest_level() -> None:
    if not PROFILE.exists():
        pytest.skip(f"no {PROFILE}: install containers-common, or golang-github-containers-common")
    options = (*POD, "--security-opt", f"seccomp={PROFILE}")
    assert level(options) == "namespaces/compute"
