"""The command of docs/slurm.md, typed in two containers at once as Slurm would.

Long, by command: `make containers`.
"""

import os
from collections.abc import Iterator

import pytest

from tests.containers.engine import VERSION, build_all, docker, engine_answers, wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

NAME = "trialrun-symmetric"
_ADDRESS = f"{NAME}-1:6379"
# Without --min-nodes: with it Ray's command joins the cluster as a driver, and ends with status 1
# when it stops the cluster. A run waits for its nodes by itself.
_COMMAND = (
    *("ray", "symmetric-run", "--address", _ADDRESS, "--num-cpus=2"),
    *("--object-store-memory=268435456", "--", "env", f"RAY_ADDRESS={_ADDRESS}"),
    *(
        "trialrun",
        "train",
        "catalog",
        "--requeue",
        "run.dir=/srv/runs",
        "run.models_dir=/srv/runs/models",
    ),
    *("run.name=first", "run.steps=2", "rollouts.workers=3", "rollouts.groups_per_step=2"),
    *("rollouts.group_size=2", "engine.kv_cache_mib=64"),
)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    if os.environ.get("TRIALRUN_CONTAINERS") != "1":
        pytest.skip("builds images and takes long: type 'make containers'")
    assert engine_answers(), "no container engine answers `docker info`"
    build_all()
    names = [f"{NAME}-{number}" for number in (1, 2)]
    _clean(names)
    docker("network", "create", NAME)
    try:
        for name in names:
            docker(
                *("run", "--detach", "--init", "--name", name, "--network", NAME),
                *("--shm-size", "1g", "--memory", "6g", "--cap-drop", "ALL"),
                *("--security-opt", "no-new-privileges", "--volume", f"{NAME}:/srv/runs"),
                *("--env", "RAY_AUTH_MODE=token", "--env", "RAY_AUTH_TOKEN=" + "5" * 32),
                *("--env", "DS_ACCELERATOR=cpu", f"trialrun-learner:{VERSION}", *_COMMAND),
            )
        yield names
    finally:
        _clean(names)


def test_one_command_on_every_node_is_a_cluster_and_a_run(nodes: list[str]) -> None:
    first, second = nodes
    # Three workers and a rank need four CPUs: both nodes.
    wait_for("a worker on the second node", lambda: "ray::RolloutActor" in _processes(second), 420)
    wait_for("the end of the command", lambda: not _runs(first), 600)
    log = docker("logs", first)
    assert docker("inspect", "--format", "{{.State.ExitCode}}", first).strip() == "0", log
    assert "step 2/2" in log
    wait_for("the end of the other node", lambda: not _runs(second), 180)


def _processes(container: str) -> str:
    return docker("top", container, "-eo", "pid,args", check=False)


def _runs(container: str) -> bool:
    return docker("inspect", "--format", "{{.State.Running}}", container).strip() == "true"


def _clean(names: list[str]) -> None:
    docker("rm", "--force", *names, check=False)
    docker("network", "rm", NAME, check=False)
    docker("volume", "rm", NAME, check=False)
