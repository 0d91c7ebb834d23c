"""What a run reserves, by group, against what a cluster has; no Ray is started."""

from typing import Any

import pytest
import ray

from cluster.config.run_config import RunConfig
from cluster.fleet.placement import demand
from cluster.fleet.placement.demand import demand_of, missing_resources, room_for_workers
from cluster.fleet.placement.worker_place import (
    NODE_ID_LABEL,
    WorkerPlace,
    usable_nodes,
    worker_places,
)
from envs.errors import ConfigError


def config_of(rollouts: dict[str, Any], **cluster: float) -> RunConfig:
    return RunConfig.model_validate({"rollouts": rollouts, "cluster": cluster})


MIXED = {
    "workers": 3,
    "groups": {
        "big": {
            "workers": 2,
            "gpus_per_worker": 2,
            "tensor_parallel_size": 2,
            "labels": {"z": "a"},
        },
        "far": {"resources": {"far": 1}, "cpus_per_worker": 4},
    },
}


def node(name: str, resources: dict[str, float], **labels: str) -> dict[str, Any]:
    return {"NodeID": name, "Alive": True, "Resources": resources, "Labels": labels}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The nodes of a cluster at RAY_ADDRESS; a test puts some in."""
    nodes: list[dict[str, Any]] = []

    def total() -> dict[str, float]:
        found: dict[str, float] = {}
        for made in nodes:
            for name, amount in made["Resources"].items():
                found[name] = found.get(name, 0.0) + amount
        return found

    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", total)
    monkeypatch.setattr(ray, "available_resources", total)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    return nodes


@pytest.mark.parametrize(
    ("free", "share", "room"),
    [
        ({"CPU": 3.5}, (1.0, 0.0), 3),
        ({"CPU": 3.5}, (0.5, 0.0), 7),
        ({"CPU": 16.0, "GPU": 1.0}, (1.0, 0.5), 2),
        ({"CPU": 16.0}, (1.0, 1.0), 0),
        ({}, (1.0, 0.0), 0),
    ],
)
def test_room_is_what_the_scarcest_share_leaves(
    cluster: list[Any], free: dict[str, float], share: tuple[float, float], room: int
) -> None:
    cluster.append(node("a", free))
    config = config_of({}, cpus_per_worker=share[0], gpus_per_worker=share[1])
    assert room_for_workers(config) == room


def test_room_for_a_group_counts_what_its_workers_need(cluster: list[Any]) -> None:
    cluster += [node("a", {"CPU": 16.0, "GPU": 4.0, "far": 3.0})]
    config = config_of(MIXED)
    assert [room_for_workers(config, name) for name in ("default", "big", "far")] == [16, 2, 3]


@pytest.mark.parametrize(
    ("total", "said"),
    [
        ({"CPU": 4.0, "GPU": 2.0}, ""),
        ({"CPU": 3.5, "GPU": 2.0}, "reserves 4 CPUs and 2 GPUs (3 rollout workers of 1 and 0.5"),
        ({"CPU": 64.0}, "1 learner ranks of 1 and 0.5); Ray has 64 CPUs and 0 GPUs: what has no"),
    ],
)
def test_what_a_run_reserves_is_compared_with_the_cluster(
    cluster: list[Any], total: dict[str, float], said: str
) -> None:
    cluster.append(node("a", total))
    config = config_of({"workers": 3}, gpus_per_worker=0.5, gpus_per_rank=0.5)
    found = missing_resources(demand_of(config))
    assert said in found and bool(said) == bool(found)


def test_groups_are_named_with_what_they_lack(cluster: list[Any]) -> None:
    cluster.append(node("a", {"CPU": 64.0, "GPU": 8.0, "far": 1.0}, z="b"))
    found = missing_resources(demand_of(config_of(MIXED)))
    assert "reserves 10 CPUs and 4 GPUs, 1 far (3 rollout workers of 1 and 0, " in found
    assert "2 workers of group big of 1 and 2" in found
    assert "1 workers of group far of 4 and 0 and 1 far" in found
    assert "no node has z=a, which the workers of group big need" in found
    cluster.append(node("b", {"CPU": 8.0, "GPU": 2.0}, z="a"))
    assert missing_resources(demand_of(config_of(MIXED))) == ""
    cluster[0]["Resources"]["far"] = 0.0
    assert "Ray has 72 CPUs and 10 GPUs, 0 far" in missing_resources(demand_of(config_of(MIXED)))
    assert missing_resources(demand_of(config_of(MIXED), {"default": 1, "big": 1, "far": 0})) == ""


def test_what_no_node_can_bring_is_refused(
    cluster: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    cluster.append(node("a", {"CPU": 8.0}))
    with pytest.raises(ConfigError, match=r"Ray has 8 CPUs and 0 GPUs: lower .*gpus_per_worker"):
        missing_resources(demand_of(config_of({"workers": 1}, gpus_per_worker=1.0)))
    with pytest.raises(ConfigError, match="no node has accelerator type H100"):
        missing_resources(demand_of(config_of({"groups": {"big": {"accelerator_type": "H100"}}})))


@pytest.mark.parametrize(
    ("condition", "nodes"),
    [("a", {"1"}), ("!a", {"2", "3"}), ("in(a, b)", {"1", "2"}), ("!in(a,b)", {"3"})],
)
def test_nodes_are_chosen_by_their_labels(
    cluster: list[Any], condition: str, nodes: set[str]
) -> None:
    shape = {"CPU": 2.0}
    cluster += [node("1", shape, z="a"), node("2", shape, z="b"), node("3", shape)]
    cluster.append({**node("4", shape, z="a"), "Alive": False})
    cluster.append(node("5", {"CPU": 1.0}, z="a"))
    place = WorkerPlace(cpus=2.0, gpus=0.0, labels={"z": condition})
    assert usable_nodes([place]) == [nodes]


def test_a_worker_asks_ray_for_what_its_group_needs() -> None:
    places = worker_places(config_of(MIXED, cpus_per_worker=2))
    assert places["default"].options() == {"num_cpus": 2.0, "num_gpus": 0.0}
    assert places["big"].options() == {
        "num_cpus": 2.0,
        "num_gpus": 2.0,
        "label_selector": {"z": "a"},
    }
    avoiding = WorkerPlace(cpus=1.0, gpus=0.0, avoid=["x", "y"], accelerator_type="L4")
    assert avoiding.options() == {
        "num_cpus": 1.0,
        "num_gpus": 0.0,
        "accelerator_type": "L4",
        "label_selector": {NODE_ID_LABEL: "!in(x,y)"},
    }
    bundles, selectors = demand_of(config_of(MIXED), ranks=False).bundles()
    assert bundles[2:] == [{"CPU": 1.0}, *[{"CPU": 1.0, "GPU": 2.0}] * 2, {"CPU": 4.0, "far": 1.0}]
    assert selectors == [{}] * 3 + [{"z": "a"}] * 2 + [{}]


def test_the_autoscaler_is_asked_once_per_size_and_told_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Any] = []

    def request(bundles: Any, bundle_label_selectors: Any) -> None:
        asked.append((bundles, bundle_label_selectors))
        if len(asked) == 3:
            raise RuntimeError("no head")

    monkeypatch.setattr(demand, "request_resources", request)
    config, requests = config_of(MIXED), demand.NodeRequests()
    requests.withdraw()
    assert asked == [], "nothing was asked for"
    for workers in ({"big": 1}, {"big": 1}, {"far": 1}):
        requests.ask(demand_of(config, workers, ranks=False))
    requests.withdraw()
    assert asked == [
        ([{"CPU": 1.0, "GPU": 2.0}], [{"z": "a"}]),
        ([{"CPU": 4.0, "far": 1.0}], [{}]),
        ([], None),
    ]
    assert "could not be asked for nodes: RuntimeError('no head')" in caplog.text


def test_a_node_is_avoided_only_while_another_one_is_large_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [
        {"NodeID": "bad", "Alive": True, "Resources": {"CPU": 4.0}},
        {"NodeID": "good", "Alive": True, "Resources": {"CPU": 4.0}},
        {"NodeID": "small", "Alive": True, "Resources": {"CPU": 1.0}},
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    place = WorkerPlace(cpus=2, gpus=0)
    assert place.avoiding(["bad"]).avoid == ["bad"]
    assert place.avoiding([]).avoid == ()
    nodes[1]["Alive"] = False
    assert place.avoiding(["bad"]).avoid == ()
