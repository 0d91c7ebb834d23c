"""The objects of Kubernetes: references, names, quantities, security."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from typer.main import get_command

from cluster.cli.main import app
from cluster.config.run_config import load_config, to_toml
from cluster.deploy.kuberay import Cluster
from cluster.deploy.manifest import manifest
from cluster.deploy.pod_groups import GIB, HostMemory, pod_groups
from cluster.deploy.render_options import RenderOptions, name_for
from envs.errors import ConfigError

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
QUANTITY = re.compile(r"[0-9]+(m|Ki|Mi|Gi|Ti)?")
MEMORY = HostMemory(rank=15 * GIB, workers={"default": 15 * GIB, "big": 30 * GIB}, version=15 * GIB)
KINDS = ("rayjob", "raycluster")


def rendered(*overrides: str, **changes: Any) -> str:
    config = load_config("qwen2.5-7b", overrides)
    options = RenderOptions(**{"kind": "rayjob", "name": "first", **changes})
    cluster = Cluster(
        options=options,
        version="0.1.0",
        ray_version="2.60.0",
        recipe=to_toml(config),
        groups=pod_groups(config, MEMORY, options),
    )
    return manifest(cluster, {"model.path": "/srv/runs/models/own"}, ("trialrun", "render"))


def documents(*overrides: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ConfigMap, and the RayJob or RayCluster."""
    found = [tree for tree in yaml.safe_load_all(rendered(*overrides, **changes)) if tree]
    recipe, tree = found
    assert recipe["kind"] == "ConfigMap"
    return recipe, tree


def cluster_of(tree: dict[str, Any]) -> dict[str, Any]:
    return tree["spec"].get("rayClusterSpec", tree["spec"])


def ray_pods(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    spec = cluster_of(tree)
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    templates = {name: group["template"]["spec"] for name, group in groups.items()}
    return {"head": spec["headGroupSpec"]["template"]["spec"], **templates}


def all_pods(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    submitter = tree["spec"].get("submitterPodTemplate")
    return {**ray_pods(tree), **({"submitter": submitter["spec"]} if submitter else {})}


def containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from pod["containers"]
    yield from pod.get("initContainers", [])


@pytest.mark.parametrize("kind", KINDS)
def test_every_reference_leads_somewhere(kind: str) -> None:
    recipe, tree = documents(kind=kind)
    for pod in ray_pods(tree).values():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert volumes["recipe"]["configMap"]["name"] == recipe["metadata"]["name"]
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == "trialrun-runs"
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert tomllib.loads(recipe["data"]["recipe.toml"])["run"]["name"] == "qwen2.5-7b"


@pytest.mark.parametrize("kind", KINDS)
def test_names_quantities_and_counts_are_valid(kind: str) -> None:
    for tree in documents(kind=kind, namespace="team-a", max_workers=16):
        assert DNS_LABEL.fullmatch(tree["metadata"]["name"])
        assert tree["metadata"]["namespace"] == "team-a"
    tree = documents(kind=kind, max_workers=16)[1]
    for pod in all_pods(tree).values():
        for container in containers(pod):
            assert DNS_LABEL.fullmatch(container["name"])
            resources = container["resources"]
            assert resources["requests"] == resources["limits"]
            assert all(QUANTITY.fullmatch(amount) for amount in resources["limits"].values())
    spec = cluster_of(tree)
    for group in spec["workerGroupSpecs"]:
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["rayVersion"] == "2.60.0"


def test_a_cluster_that_does_not_grow_has_no_autoscaler() -> None:
    assert "enableInTreeAutoscaling" not in cluster_of(documents()[1])


@pytest.mark.parametrize("kind", KINDS)
def test_pods_satisfy_the_restricted_standard(kind: str) -> None:
    tree = documents(kind=kind, max_workers=16)[1]
    for pod in all_pods(tree).values():
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == security["fsGroup"] == 10001
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any("hostPath" in volume for volume in pod.get("volumes", []))
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
    assert cluster_of(tree)["autoscalerOptions"]["securityContext"]["capabilities"]


def test_pods_that_run_tools_get_the_seccomp_profile_that_is_named() -> None:
    pods = all_pods(documents(seccomp_profile="trialrun.json")[1])
    named = {name: pod["securityContext"]["seccompProfile"] for name, pod in pods.items()}
    ours = {"type": "Localhost", "localhostProfile": "trialrun.json"}
    default = {"type": "RuntimeDefault"}
    assert named == {"head": default, "submitter": default, "learner": ours, "rollout": ours}
    assert "below the kubelet's folder seccomp: trialrun.json" in rendered(
        seccomp_profile="trialrun.json"
    )


def test_doctor_looks_at_every_node_that_runs_tools_before_ray_starts() -> None:
    for name, pod in ray_pods(documents()[1]).items():
        if name == "head":
            assert "initContainers" not in pod
            continue
        (doctor,) = pod["initContainers"]
        assert doctor["command"] == ["trialrun", "doctor", "--recipe", "/srv/recipe/recipe.toml"]
        assert doctor["resources"] == pod["containers"][0]["resources"]
        assert pod["automountServiceAccountToken"] is False


def test_shared_memory_is_part_of_the_memory_of_a_pod() -> None:
    for pod in ray_pods(documents()[1]).values():
        (shm,) = (v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "shm")
        memory = pod["containers"][0]["resources"]["limits"]["memory"]
        assert int(shm.removesuffix("Gi")) < int(memory.removesuffix("Gi"))


def test_the_cluster_asks_for_rays_token() -> None:
    assert cluster_of(documents()[1])["authOptions"] == {"mode": "token"}
    named = cluster_of(documents(token_secret="ours")[1])["authOptions"]
    assert named == {"mode": "token", "secretName": "ours"}
    assert "a secret ours with the key auth_token" in rendered(token_secret="ours")


def test_gpus_are_requested_where_they_are_used() -> None:
    pods = ray_pods(documents()[1])
    wanted = {
        name: pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for name, pod in pods.items()
    }
    assert wanted == {"head": None, "learner": "4", "rollout": "4"}
    accelerators = {name: pod["containers"][0]["env"][0]["value"] for name, pod in pods.items()}
    assert accelerators == {"head": "cpu", "learner": "cuda", "rollout": "cuda"}


def test_images_are_ours_or_the_one_that_is_named() -> None:
    pods = all_pods(documents()[1])
    images = {name: pod["containers"][0]["image"] for name, pod in pods.items()}
    assert images["rollout"] == "trialrun-rollout:0.1.0"
    assert {images["head"], images["learner"]} == {"trialrun-learner:0.1.0"}
    for pod in all_pods(documents(image="host/ours:1", pull_secret="pull")[1]).values():
        assert {container["image"] for container in containers(pod)} == {"host/ours:1"}
        assert pod["imagePullSecrets"] == [{"name": "pull"}]


def test_the_entry_point_is_a_command_that_resumes_after_a_retry() -> None:
    spec = documents()[1]["spec"]
    program, name, recipe, *options = spec["entrypoint"].split()
    assert (program, recipe) == ("trialrun", "/srv/recipe/recipe.toml")
    commands: Any = get_command(app)
    given = commands.commands[name].make_context(name, ["catalog", *options]).params
    assert given["requeue"] is True
    assert spec["backoffLimit"] > 0


def test_the_notes_name_what_has_to_be_there() -> None:
    notes = rendered(volume="big").partition("---")[0]
    assert "for model.path: /srv/runs/models/own" in notes
    assert "a claim big" in notes
    assert "learner: 1 x 16 CPUs, 4 GPUs" in notes


def test_names_come_from_the_run() -> None:
    assert name_for("qwen2.5-7b") == "qwen2-5-7b"
    assert name_for("A_b." + "x" * 80) == "a-b-" + "x" * 36
    with pytest.raises(ConfigError, match="give --name"):
        name_for("._.")
    with pytest.raises(ConfigError, match="--namespace of small letters"):
        RenderOptions(kind="rayjob", name="first", namespace="Team A")
