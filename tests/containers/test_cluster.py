"""A Ray cluster of containers: jobs, a killed container, a cut network, more containers.

Long, by command: `make containers`.
"""

import os
import re
import time
from collections.abc import Iterator

import pytest

from tests.containers.engine import (
    Compose,
    address_of,
    build_all,
    docker,
    engine_answers,
    missing,
    wait_for,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

_LESSONS = (
    *("run.dir=/srv/runs", "run.models_dir=/srv/runs/models", "engine.kv_cache_mib=64"),
    # one tool, truly described: in seconds of lessons a model learns to call it now and then
    *("env.catalog.tools=1", "env.catalog.recurrent=1.0", "env.catalog.quirks={none=1.0}"),
    *("env.catalog.docs={true=1.0}", "episode.trial_call_cost=0.02"),
)
_TEACH = (
    *("trialrun", "sft", "catalog", *_LESSONS, "run.name=taught"),
    *("teacher.episodes=400", "sft.epochs=3"),
)
_TRAIN = (
    *("trialrun", "train", "catalog", *_LESSONS, "run.name=long"),
    *("model.path=/srv/runs/taught/model", "run.checkpoint_every=1", "rollouts.workers=2"),
    *("rollouts.groups_per_step=4", "rollouts.group_size=4"),
)
_SHM = (
    "import os, shutil\n"
    "print('shm', os.stat('/dev/shm').st_dev, shutil.disk_usage('/dev/shm').total)"
)
_CUT_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Compose]:
    if os.environ.get("TRIALRUN_CONTAINERS") != "1":
        pytest.skip("builds images and takes long: type 'make containers'")
    assert engine_answers(), "no container engine answers `docker info`"
    assert not missing(["compose"]), "the plugin `docker compose` is not installed"
    build_all()
    compose = Compose("trialrun-test")
    compose.down()
    try:
        compose.up(workers=2)
        yield compose
    finally:
        compose.down()


def test_each_container_is_a_node_with_its_own_address_memory_and_limits(cluster: Compose) -> None:
    nodes = [*cluster.containers("head"), *cluster.containers("rollout")]
    addresses = {address_of(name) for name in nodes}
    assert len(nodes) == len(addresses) == 3
    wait_for("three nodes", lambda: cluster.alive_nodes() == addresses, 120)
    devices = set()
    for name in nodes:
        shown = docker("exec", name, "python", "-c", _SHM).split()
        devices.add(shown[shown.index("shm") + 1])
        assert int(shown[shown.index("shm") + 2]) == 2**30
        limit = docker("inspect", "--format", "{{.HostConfig.Memory}}", name)
        assert int(limit) == 6 * 2**30
    assert len(devices) == 3


def test_doctor_finds_nothing_missing_inside_a_node(cluster: Compose) -> None:
    shown = cluster("exec", "-T", "rollout", "trialrun", "doctor", "--json", timeout_s=180)
    assert '"ok": true' in shown
    assert '"missing"' not in shown


def test_the_tool_server_of_the_cluster_isolates(cluster: Compose) -> None:
    ask = (
        "import httpx, os; token = os.environ['TRIALRUN_TOOLS_TOKEN'];"
        "print(httpx.get('http://127.0.0.1:8300/health', "
        "headers={'authorization': f'Bearer {token}'}).json()['isolation'])"
    )
    assert "landlock/compute" in cluster("exec", "-T", "tools", "python", "-c", ask)


def test_a_head_without_the_token_takes_no_job(cluster: Compose) -> None:
    refused = cluster.on_head(
        *("env", "RAY_AUTH_TOKEN=wrong-token-wrong-token-wrong-token", "ray", "job", "submit"),
        *("--address", "http://127.0.0.1:8265", "--", "true"),
        check=False,
    )
    assert "succeeded" not in refused
    assert "401" in refused or "403" in refused or "nauthor" in refused or "nvalid" in refused


def test_a_job_outlives_a_killed_container_a_cut_network_and_a_new_node(cluster: Compose) -> None:
    assert "'teach' succeeded" in cluster.submit("teach", *_TEACH, wait=True, timeout_s=900)
    cluster.submit("long", *_TRAIN, "run.steps=2000", wait=False)
    wait_for("a first step", lambda: cluster.steps_of("long") > 0, 420)
    learner = cluster.container_with("LearnerActor")
    assert len(learner) == 1
    nodes = cluster.containers("rollout")

    # A container dies, and the node comes back as another one.
    victim = next(name for name in nodes if name not in learner)
    docker("kill", "--signal", "KILL", victim)
    _goes_on(cluster, "after a container was killed")
    docker("start", victim)
    wait_for("the node again", lambda: address_of(victim) in cluster.alive_nodes(), 180)

    # Another one is cut off for a minute: Ray gives it up, it ends, and it joins again.
    cut = next(name for name in reversed(nodes) if name not in learner)
    network = f"{cluster.project}_default"
    docker("network", "disconnect", network, cut)
    began = time.monotonic()
    _goes_on(cluster, "while a node is cut off")
    wait_for("the end of the cut", lambda: time.monotonic() - began > _CUT_S, 2 * _CUT_S)
    docker("network", "connect", "--alias", "rollout", network, cut)
    _goes_on(cluster, "after the cut")
    wait_for("the cut node again", lambda: address_of(cut) in cluster.alive_nodes(), 300)

    # One more container, and one more worker for it.
    cluster.up(workers=3)
    wait_for("four nodes", lambda: len(cluster.alive_nodes()) == 4, 180)
    cluster.on_head("trialrun", "scale", "/srv/runs/long", "3")
    wait_for("three workers", lambda: "workers 3" in cluster.log_of("long"), 420)
    log = cluster.log_of("long")
    assert not re.search(r"^error:", log, re.MULTILINE), log[-4000:]
    # Weights that have changed went to engines in other containers.
    assert re.search(r"^step .* trained on [0-9]", log, re.MULTILINE), log[-4000:]
    cluster.on_head("ray", "job", "stop", "--address", "http://127.0.0.1:8265", "long")


def test_the_same_run_goes_on_in_a_job_that_is_submitted_again(cluster: Compose) -> None:
    done = cluster.steps_of("long")
    assert done > 0, "the test before this one starts the run"
    steps = f"run.steps={done + 3}"
    log = cluster.submit("again", *_TRAIN, steps, "--requeue", wait=True)
    assert "'again' succeeded" in log
    assert f"step {done + 3}/{done + 3}" in log
    cluster.on_head("test", "-f", "/srv/runs/long/model/config.json")


def _goes_on(cluster: Compose, when: str) -> None:
    before = cluster.steps_of("long")
    wait_for(f"steps {when}", lambda: cluster.steps_of("long") > before, 300)
