"""A container engine, the images of `docker/`, and a cluster of containers made from them."""

import contextlib
import functools
import http.server
import ipaddress
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from requirements.install import locked_version, read_pip_settings
from tests.project_tree import ROOT

IMAGES = ("tools", "rollout", "learner")
COMPOSE_FILE = ROOT / "docker" / "compose.yaml"
VERSION = "0.1.0"
PINNED_BASE = yaml.safe_load(COMPOSE_FILE.read_text())["services"]["tools"]["build"]["args"][
    "BASE_IMAGE"
].removeprefix("${BASE_IMAGE:-")[:-1]
_BOOTSTRAPPED = "trialrun-base:bookworm"


def run(
    *command: str, timeout_s: float, environ: Mapping[str, str] | None = None, check: bool = True
) -> str:
    """Return what a command wrote; fails the test, with both streams, where it fails."""
    ended = subprocess.run(
        command,
        env={**os.environ, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if check and ended.returncode != 0:
        tail = (ended.stdout + ended.stderr)[-6000:]
        pytest.fail(f"{' '.join(command)} ended with {ended.returncode}:\n{tail}", pytrace=False)
    return ended.stdout + ended.stderr


def docker(*arguments: str, timeout_s: float = 120, check: bool = True) -> str:
    return run("docker", *arguments, timeout_s=timeout_s, check=check)


@functools.cache
def engine_answers() -> bool:
    """Whether a container engine is at hand."""
    try:
        asked = subprocess.run(["docker", "info"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def has_image(name: str) -> bool:
    found = subprocess.run(
        ["docker", "image", "inspect", name], capture_output=True, timeout=60, check=False
    )
    return found.returncode == 0


@functools.cache
def ready_base() -> str:
    """Return BASE_IMAGE, else a base that is here or can be pulled, else an empty string."""
    named = os.environ.get("BASE_IMAGE", "")
    if named:
        return named
    for name in (PINNED_BASE, _BOOTSTRAPPED):
        if has_image(name):
            return name
    try:
        pulled = subprocess.run(
            ["docker", "pull", "--quiet", PINNED_BASE],
            capture_output=True,
            timeout=300,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pass
    else:
        if pulled.returncode == 0:
            return PINNED_BASE
    return ""


@functools.cache
def base_image() -> str:
    """Return the ready base, else make one of a bootstrapped Debian, which takes minutes."""
    if ready := ready_base():
        return ready
    run(str(ROOT / "docker" / "base_image.sh"), _BOOTSTRAPPED, timeout_s=900)
    return _BOOTSTRAPPED


def build(image: str, **arguments: str) -> None:
    """Build one of the images from `docker/`, with the Dockerfile's arguments."""
    words = [
        word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")
    ]
    dockerfile = str(ROOT / "docker" / f"{image}.Dockerfile")
    name = f"trialrun-{image}:{VERSION}"
    docker("build", "--quiet", *words, "-f", dockerfile, "-t", name, str(ROOT), timeout_s=2400)


def build_all() -> None:
    """Build the three images, with the CPU stack. What is unchanged comes from the cache."""
    build("tools", BASE_IMAGE=base_image())
    with cpu_torch() as source:
        build("rollout", BASE_IMAGE=base_image(), STACK="cpu", **source)
    build("learner", ACCELERATOR="cpu")


@contextlib.contextmanager
def cpu_torch() -> Iterator[dict[str, str]]:
    """Offer the CPU build of torch to a build, where pip has it in a folder of this machine.

    A container sees no folders of the machine, so the folder is served on the engine's own network
    while the build runs. Without such a folder the Dockerfile's default applies.
    """
    lock = (ROOT / "requirements" / "cpu.lock").read_text()
    wheel = f"torch-{locked_version(lock, 'torch')}-*.whl"
    folders = read_pip_settings([sys.executable, "-m", "pip"]).get("find-links", [])
    folder = next((found for found in map(Path, folders) if list(found.glob(wheel))), None)
    if folder is None:
        yield {}
        return
    gateway = _engine_address()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer((gateway, 8999), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            # The port is fixed: it is part of the build's cache key.
            yield {"CPU_TORCH": f"http://{gateway}:8999/"}
        finally:
            server.shutdown()
            thread.join(10)


def _engine_address() -> str:
    """Return this machine's address in the engine's network: the first one of its subnet."""
    shown = "{{(index .IPAM.Config 0).Subnet}}"
    subnet = docker("network", "inspect", "bridge", "--format", shown).strip()
    return str(ipaddress.ip_network(subnet)[1])


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class Compose:
    """The compose file as a cluster of its own, with its own ports and small limits."""

    environ: Mapping[str, str] = {
        "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
        "TRIALRUN_TOOLS_TOKEN": "a-token-of-the-test",
        "TRIALRUN_DASHBOARD": "18265",
        "TRIALRUN_TOOLS_PORT": "18300",
        "TRIALRUN_SHM": "1gb",
        "TRIALRUN_MEMORY": "6gb",
        "TRIALRUN_OBJECT_STORE": str(256 * 2**20),
        "TRIALRUN_OPEN_FILES": "16384",
    }

    def __init__(self, project: str) -> None:
        self.project = project

    def __call__(self, *arguments: str, timeout_s: float = 120, check: bool = True) -> str:
        files = ("--project-name", self.project, "--file", str(COMPOSE_FILE))
        return run(
            *("docker", "compose", *files, *arguments),
            timeout_s=timeout_s,
            environ=self.environ,
            check=check,
        )

    def up(self, workers: int) -> None:
        scale = f"rollout={workers}"
        self("up", "--detach", "--no-build", "--no-recreate", "--scale", scale, timeout_s=600)

    def down(self) -> None:
        self("down", "--volumes", "--timeout", "10", timeout_s=300, check=False)

    def on_head(self, *command: str, timeout_s: float = 120, check: bool = True) -> str:
        return self("exec", "-T", "head", *command, timeout_s=timeout_s, check=check)

    def containers(self, service: str) -> list[str]:
        """Names of the running containers of a service."""
        listed = self("ps", "--format", "{{.Name}}", service)
        return sorted(line for line in listed.split() if line.startswith(self.project))

    def container_with(self, actor: str) -> set[str]:
        """Containers in which an actor of that class runs."""
        everywhere = [*self.containers("head"), *self.containers("rollout")]
        return {
            name
            for name in everywhere
            if f"ray::{actor}" in docker("top", name, "-eo", "pid,args", check=False)
        }

    def alive_nodes(self) -> set[str]:
        """Addresses of the nodes that Ray's head sees alive."""
        shown = self.on_head(
            "python",
            "-c",
            "import ray; ray.init(log_to_driver=False, logging_level='error')\n"
            "for node in ray.nodes():\n"
            "    if node['Alive']: print('alive', node['NodeManagerAddress'])",
        )
        return {line.split()[1] for line in shown.splitlines() if line.startswith("alive ")}

    def submit(self, job: str, *command: str, wait: bool, timeout_s: float = 600) -> str:
        """Submit a job; returns its log where it is waited for."""
        options = ["--address", "http://127.0.0.1:8265", "--submission-id", job]
        options += [] if wait else ["--no-wait"]
        return self.on_head("ray", "job", "submit", *options, "--", *command, timeout_s=timeout_s)

    def log_of(self, job: str) -> str:
        return self.on_head(
            "ray", "job", "logs", "--address", "http://127.0.0.1:8265", job, check=False
        )

    def steps_of(self, job: str) -> int:
        """Return how many steps the job's log shows."""
        return sum(line.startswith("step ") for line in self.log_of(job).splitlines())


def address_of(container: str) -> str:
    """Return the address of a container in its network, empty while it has none."""
    shown = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
    return docker("inspect", "--format", shown, container).strip()


def wait_for(what: str, condition: Callable[[], bool], deadline_s: float) -> None:
    """Wait until `condition()` holds; fails the test after `deadline_s` seconds."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {deadline_s:.0f} s: {what}", pytrace=False)
        time.sleep(2)


def missing(needed: Sequence[str]) -> list[str]:
    """Return what of `needed` the engine's client cannot do."""
    return [
        word
        for word in needed
        if subprocess.run(["docker", word, "version"], capture_output=True, check=False).returncode
    ]
