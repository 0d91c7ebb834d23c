"""Dockerfiles and compose files, read: pins, users, sources, ports, what they promise each other.

`make containers` builds and runs them.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.project_tree import ROOT, imported_names, project_modules, top, tree_of

FOLDER = ROOT / "docker"
DOCKERFILES = sorted(FOLDER.glob("*.Dockerfile"))
COMPOSE = FOLDER / "compose.yaml"
GPU = FOLDER / "compose.gpu.yaml"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
_PINNED = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")


def services() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


def arguments_of(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^ARG (\w+)=(\S+)$", path.read_text(), re.MULTILINE))


def test_every_image_comes_from_one_base_pinned_by_digest() -> None:
    bases = {
        found["BASE_IMAGE"] for path in DOCKERFILES if "BASE_IMAGE" in (found := arguments_of(path))
    }
    (base,) = bases
    assert _PINNED.fullmatch(base)
    given = re.findall(r"\$\{BASE_IMAGE:-(\S+)\}", COMPOSE.read_text())
    assert set(given) == bases
    for path in DOCKERFILES:
        sources = re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE)
        assert all(source in ("${BASE_IMAGE}", "${ROLLOUT_IMAGE}") for source in sources), path


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_ends_as_a_user_with_a_number_that_is_not_root(path: Path) -> None:
    assert re.findall(r"^USER (\S+)$", path.read_text(), re.MULTILINE)[-1] == "10001"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_copies_only_what_exists(path: Path) -> None:
    text = path.read_text().replace("\\\n", " ")
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        sources = [word for word in line.split() if not word.startswith("--")][:-1]
        assert all((ROOT / source).exists() for source in sources), line


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed")
    found = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_the_tools_image_installs_what_envs_imports() -> None:
    text = (FOLDER / "tools.Dockerfile").read_text()
    imported = {
        top(name)
        for path in project_modules()
        if path.startswith("envs/")
        for name in imported_names(tree_of(path))
    }
    wanted = imported - set(sys.stdlib_module_names) - {"envs"}
    if "yaml" in wanted:
        wanted = wanted - {"yaml"} | {"pyyaml"}
    # starlette comes with fastapi.
    assert wanted - {"starlette"} <= set(re.findall(r"\w+", text)), wanted


def test_compose_builds_the_images_that_it_names_with_arguments_that_exist() -> None:
    for name, service in services().items():
        path = ROOT / service["build"]["dockerfile"]
        assert path in DOCKERFILES, name
        assert service["image"] == f"trialrun-{path.stem}:{VERSION}"
        given = set(service["build"].get("args", {}))
        assert given <= set(arguments_of(path)), name
    for service in yaml.safe_load(GPU.read_text())["services"].values():
        assert set(service.get("build", {}).get("args", {})) <= {"ACCELERATOR"}


@pytest.mark.parametrize("files", [(COMPOSE,), (COMPOSE, GPU)], ids=["cpu", "gpu"])
def test_docker_compose_accepts_the_files_and_refuses_a_missing_token(
    files: tuple[Path, ...],
) -> None:
    if shutil.which("docker") is None or compose("version").returncode != 0:
        pytest.skip("the plugin `docker compose` is not installed")
    words = [word for path in files for word in ("--file", str(path))]
    tokens = {"RAY_AUTH_TOKEN": "a", "TRIALRUN_TOOLS_TOKEN": "b"}
    accepted = compose(*words, "config", "--quiet", environ=tokens)
    assert accepted.returncode == 0, accepted.stderr
    refused = compose(*words, "config", "--quiet", environ={"TRIALRUN_TOOLS_TOKEN": "b"})
    assert refused.returncode != 0
    assert "RAY_AUTH_TOKEN" in refused.stderr


def compose(
    *arguments: str, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `docker compose`, which needs no engine to read files."""
    inherited = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    return subprocess.run(
        ["docker", "compose", *arguments],
        env={**inherited, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_compose_publishes_ports_on_this_machine_only() -> None:
    for service in services().values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_compose_gives_no_container_more_than_it_needs() -> None:
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service
        assert service["pids_limit"] > 0
        assert "mem_limit" in service


def test_secrets_have_no_default() -> None:
    head, tools = services()["head"], services()["tools"]
    assert head["environment"]["RAY_AUTH_MODE"] == "token"
    assert head["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    assert tools["environment"]["TRIALRUN_TOOLS_TOKEN"].startswith("${TRIALRUN_TOOLS_TOKEN:?")


def test_every_ray_node_has_its_own_shared_memory_and_the_same_volume() -> None:
    for name in ("head", "rollout"):
        service = services()[name]
        assert "ipc" not in service
        assert service["shm_size"]
        assert service["volumes"] == ["runs:/srv/runs"]
