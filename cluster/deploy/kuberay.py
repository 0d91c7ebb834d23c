"""KubeRay's objects for a recipe, as trees that become YAML.

Every pod satisfies the pod security standard `restricted`. Source of the fields: KubeRay's custom
resource definitions `ray.io/v1`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from cluster.deploy.pod_groups import GIB, OBJECT_STORE, PodGroup
from cluster.deploy.render_options import RenderOptions
from cluster.deploy.volume_paths import MOUNT

Tree = dict[str, JsonValue]

RECIPE_FILE = "/srv/recipe/recipe.toml"
USER = 10_001
"""The user of the images in `docker/`."""
GPU = "nvidia.com/gpu"
_RETRIES = 2
"""Of a job that failed, such as one whose head was evicted."""
_CONTAINER = {"head": "ray-head"}
_POD_SECURITY: Tree = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER_SECURITY: Tree = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """All that the objects are made of."""

    options: RenderOptions
    version: str
    """Of trialrun, the tag of its images."""
    ray_version: str
    recipe: str
    """The resolved recipe, TOML."""
    groups: Sequence[PodGroup]

    @property
    def labels(self) -> Tree:
        return {
            "app.kubernetes.io/name": "trialrun",
            "app.kubernetes.io/instance": self.options.name,
        }

    @property
    def grows(self) -> bool:
        return any(group.most > group.least for group in self.groups)

    @property
    def on_gpus(self) -> bool:
        return any(group.gpus for group in self.groups)


def objects(cluster: Cluster) -> list[Tree]:
    """Return the recipe's ConfigMap, then the RayJob or RayCluster."""
    return [
        _recipe_map(cluster),
        _ray_job(cluster) if cluster.options.kind == "rayjob" else _ray_cluster(cluster),
    ]


def _metadata(cluster: Cluster, name: str) -> Tree:
    found: Tree = {"name": name, "labels": cluster.labels}
    if cluster.options.namespace:
        found["namespace"] = cluster.options.namespace
    return found


def _recipe_name(cluster: Cluster) -> str:
    return f"{cluster.options.name}-recipe"


def _recipe_map(cluster: Cluster) -> Tree:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(cluster, _recipe_name(cluster)),
        "data": {"recipe.toml": cluster.recipe},
    }


def _ray_cluster(cluster: Cluster) -> Tree:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(cluster, cluster.options.name),
        "spec": _cluster_spec(cluster),
    }


def _ray_job(cluster: Cluster) -> Tree:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(cluster, cluster.options.name),
        "spec": {
            # A retry, on a new cluster, resumes what the volume has.
            "entrypoint": f"trialrun train {RECIPE_FILE} --requeue",
            "backoffLimit": _RETRIES,
            "submissionMode": "K8sJobMode",
            "submitterPodTemplate": _submitter(cluster),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": _cluster_spec(cluster),
        },
    }


def _submitter(cluster: Cluster) -> Tree:
    """The pod that runs `ray job submit`: KubeRay's own has no security context."""
    container: Tree = {
        "name": "ray-job-submitter",
        "image": _image(cluster, "head"),
        "resources": _resources("500m", GIB, 0),
        "securityContext": _CONTAINER_SECURITY,
    }
    return {
        "metadata": {"labels": cluster.labels},
        "spec": {**_pod_spec(cluster), "restartPolicy": "Never", "containers": [container]},
    }


def _cluster_spec(cluster: Cluster) -> Tree:
    head = next(group for group in cluster.groups if group.name == "head")
    spec: Tree = {"rayVersion": cluster.ray_version, "authOptions": {"mode": "token"}}
    if cluster.options.token_secret:
        spec["authOptions"] = {"mode": "token", "secretName": cluster.options.token_secret}
    if cluster.grows:
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = {
            "upscalingMode": "Default",
            "idleTimeoutSeconds": 300,
            "securityContext": _CONTAINER_SECURITY,
        }
    # No CPUs: neither learner nor workers are placed on the head.
    parameters: Tree = {"dashboard-host": "0.0.0.0", "num-cpus": "0", "num-gpus": "0"}
    spec["headGroupSpec"] = {
        "rayStartParams": {**parameters, "object-store-memory": str(OBJECT_STORE)},
        "template": _pod(cluster, head),
    }
    spec["workerGroupSpecs"] = [
        _worker_group(cluster, group) for group in cluster.groups if group.name != "head"
    ]
    return spec


def _worker_group(cluster: Cluster, group: PodGroup) -> Tree:
    return {
        "groupName": group.name,
        "replicas": group.replicas,
        "minReplicas": group.least,
        "maxReplicas": group.most,
        "rayStartParams": {"object-store-memory": str(OBJECT_STORE), **_ray_node(group)},
        "template": _pod(cluster, group),
    }


def _ray_node(group: PodGroup) -> Tree:
    """Return the options of `ray start` for labels and resources of a group's own."""
    found: Tree = {}
    if group.labels:
        found["labels"] = ",".join(f"{key}={value}" for key, value in group.labels.items())
    if group.resources:
        found["resources"] = f"'{json.dumps(dict(group.resources))}'"
    return found


def _pod(cluster: Cluster, group: PodGroup) -> Tree:
    resources = _resources(str(group.cpus), group.memory, group.gpus)
    mounts: list[JsonValue] = [
        {"name": "runs", "mountPath": str(MOUNT)},
        {"name": "recipe", "mountPath": "/srv/recipe", "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    container: Tree = {
        "name": _CONTAINER.get(group.name, group.name),
        "image": _image(cluster, group.name),
        "env": [
            {"name": "DS_ACCELERATOR", "value": "cuda" if group.gpus else "cpu"},
            {"name": "TRIALRUN_HOME", "value": str(MOUNT)},
            {"name": "TRIALRUN_KEY_FILE", "value": str(MOUNT / ".trialrun-key")},
        ],
        "resources": resources,
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": mounts,
    }
    profile = cluster.options.seccomp_profile if group.name != "head" else ""
    spec: Tree = {**_pod_spec(cluster, profile), "containers": [container]}
    if group.name == "head":
        container["ports"] = [
            {"name": "gcs-server", "containerPort": 6379},
            {"name": "dashboard", "containerPort": 8265},
            {"name": "client", "containerPort": 10001},
        ]
    else:
        # Tool code runs in these pods: a service account's token has no use here.
        spec["automountServiceAccountToken"] = False
        spec["initContainers"] = [_doctor(container)]
    if group.gpus:
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    spec["volumes"] = [
        {"name": "runs", "persistentVolumeClaim": {"claimName": cluster.options.volume}},
        {"name": "recipe", "configMap": {"name": _recipe_name(cluster)}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _gib(group.shared_memory)}},
    ]
    return {"metadata": {"labels": cluster.labels}, "spec": spec}


def _doctor(container: Tree) -> Tree:
    """The check before Ray starts: a node whose kernel cannot isolate tools is not used.

    It has the resources of the container, for it looks for the GPUs too.
    """
    same = ("image", "env", "resources", "securityContext", "volumeMounts")
    return {
        "name": "doctor",
        "command": ["trialrun", "doctor", "--recipe", RECIPE_FILE],
        **{key: container[key] for key in same},
    }


def _pod_spec(cluster: Cluster, profile: str = "") -> Tree:
    security = dict(_POD_SECURITY)
    if profile:
        security["seccompProfile"] = {"type": "Localhost", "localhostProfile": profile}
    found: Tree = {"securityContext": security}
    if cluster.options.pull_secret:
        found["imagePullSecrets"] = [{"name": cluster.options.pull_secret}]
    return found


def _image(cluster: Cluster, group: str) -> str:
    built = "rollout" if group.startswith("rollout") else "learner"
    return cluster.options.image or f"trialrun-{built}:{cluster.version}"


def _resources(cpus: str, memory: int, gpus: int) -> Tree:
    """Requests and limits are equal: Ray takes what it may use from the limits."""
    amounts: Tree = {"cpu": cpus, "memory": _gib(memory)}
    if gpus:
        amounts[GPU] = str(gpus)
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _gib(size: int) -> str:
    return f"{size // GIB}Gi"
