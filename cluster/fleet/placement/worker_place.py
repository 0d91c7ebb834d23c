"""Where a rollout worker may run: what Ray reserves for it, and which nodes it wants or avoids."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from cluster.config.fleet_config import DEFAULT_GROUP
from cluster.config.run_config import RunConfig

NODE_ID_LABEL = "ray.io/node-id"
"""Label that Ray gives to every node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlace:
    """What a rollout worker of one kind needs from its node."""

    cpus: float
    gpus: float
    accelerator_type: str = ""
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    """Conditions on the labels of the node, as in Ray's label_selector."""
    avoid: Sequence[str] = ()
    """Ids of nodes where it must not run."""

    @property
    def shape(self) -> dict[str, float]:
        """Everything that Ray reserves, by the name of the resource."""
        found = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        if self.accelerator_type:
            found[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return {name: amount for name, amount in found.items() if amount}

    @property
    def selector(self) -> dict[str, str]:
        """Ray's label_selector, without the nodes to avoid."""
        return dict(self.labels)

    def avoiding(self, nodes: Sequence[str]) -> "WorkerPlace":
        """Return the place without `nodes`, unless no other living node is large enough."""
        others = usable_nodes([self])[0] - set(nodes) if nodes else set()
        return replace(self, avoid=nodes) if others else self

    def options(self) -> dict[str, Any]:
        """Return the options of the Ray actor."""
        found: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.resources:
            found["resources"] = dict(self.resources)
        if self.accelerator_type:
            found["accelerator_type"] = self.accelerator_type
        selector = self.selector
        if self.avoid:
            selector[NODE_ID_LABEL] = f"!in({','.join(self.avoid)})"
        if selector:
            found["label_selector"] = selector
        return found


def worker_places(config: RunConfig) -> dict[str, WorkerPlace]:
    """Return what a worker of each group needs, the default group first."""
    section = config.cluster
    places = {
        DEFAULT_GROUP: WorkerPlace(cpus=section.cpus_per_worker, gpus=section.gpus_per_worker)
    }
    for name, group in config.rollouts.groups.items():
        places[name] = WorkerPlace(
            cpus=group.cpus_per_worker,
            gpus=group.gpus_per_worker,
            accelerator_type=group.accelerator_type,
            resources=group.resources,
            labels=group.labels,
        )
    return places


def workers_wanted(config: RunConfig) -> dict[str, int]:
    """Return the number of workers of each group at the start."""
    found = {DEFAULT_GROUP: config.rollouts.workers}
    return found | {name: group.workers for name, group in config.rollouts.groups.items()}


def usable_nodes(places: Sequence[WorkerPlace]) -> list[Set[str]]:
    """Return for each place the ids of the living nodes that are large enough for it."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [{node["NodeID"] for node in nodes if _suits(node, place)} for place in places]


def _suits(node: Mapping[str, Any], place: WorkerPlace) -> bool:
    total, labels = node["Resources"], node.get("Labels") or {}
    large = all(total.get(name, 0.0) >= amount for name, amount in place.shape.items())
    return large and all(_holds(labels.get(key), text) for key, text in place.labels.items())


def _holds(value: str | None, condition: str) -> bool:
    """Whether a label of a node meets a condition: `a`, `!a`, `in(a,b)` or `!in(a,b)`."""
    negated = condition.startswith("!")
    text = condition.removeprefix("!")
    inner = text.removeprefix("in(").removesuffix(")") if text.startswith("in(") else text
    allowed = {part.strip() for part in inner.split(",")}
    return (value not in allowed) if negated else (value in allowed)
