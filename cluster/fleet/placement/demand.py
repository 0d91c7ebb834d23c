"""What a run reserves, compared with what the cluster has, and asked for from its autoscaler."""

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from cluster.config.fleet_config import DEFAULT_GROUP
from cluster.config.run_config import RunConfig
from cluster.fleet.placement.worker_place import (
    WorkerPlace,
    usable_nodes,
    worker_places,
    workers_wanted,
)
from envs.errors import ConfigError

logger = logging.getLogger("trialrun")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Processes of one kind."""

    what: str
    """`rollout workers`, `learner ranks`, or workers with the name of their group."""
    count: int
    place: WorkerPlace

    def describe(self) -> str:
        """Return `3 rollout workers of 1 and 0.5`, with further resources by name."""
        more = "".join(f" and {n:g} {name}" for name, n in self.place.resources.items())
        return f"{self.count} {self.what} of {self.place.cpus:g} and {self.place.gpus:g}{more}"


@dataclass(frozen=True, slots=True)
class Demand:
    """All that a run reserves."""

    parts: tuple[Part, ...]

    @property
    def total(self) -> dict[str, float]:
        """Amounts by resource; types of GPUs are no amounts."""
        found: Counter[str] = Counter()
        for part in self.parts:
            for name, amount in part.place.shape.items():
                if not name.startswith("accelerator_type:"):
                    found[name] += part.count * amount  # pyright: ignore[reportArgumentType]
        return dict(found)

    def bundles(self) -> tuple[list[dict[str, float]], list[dict[str, str]]]:
        """Return the reservation of every process, and its conditions on labels."""
        places = [part.place for part in self.parts for _ in range(part.count)]
        return [place.shape for place in places], [place.selector for place in places]


def demand_of(
    config: RunConfig, workers: Mapping[str, int] | None = None, *, ranks: bool = True
) -> Demand:
    """Return what a run reserves: `workers` of each group, by default as the recipe says."""
    section, counts = config.cluster, workers or workers_wanted(config)
    parts = [
        Part(
            what="rollout workers" if group == DEFAULT_GROUP else f"workers of group {group}",
            count=counts.get(group, 0),
            place=place,
        )
        for group, place in worker_places(config).items()
    ]
    if ranks:
        place = WorkerPlace(cpus=section.cpus_per_rank, gpus=section.gpus_per_rank)
        parts.append(Part(what="learner ranks", count=config.learner.ranks, place=place))
    return Demand(tuple(part for part in parts if part.count))


def missing_resources(demand: Demand) -> str:
    """Compare what a run reserves with what Ray has in all; say what is missing, or "".

    A run waits for what is missing, since nodes may join. Raises ConfigError where none can: in a
    Ray that this command has started.
    """
    total: Mapping[str, float] = ray.cluster_resources()
    needs = {"CPU": 0.0, "GPU": 0.0} | demand.total
    short = any(total.get(name, 0.0) < amount for name, amount in needs.items())
    homeless = _without_node(demand)
    if not short and not homeless:
        return ""
    others = [name for name in needs if name not in ("CPU", "GPU")]
    amounts = "".join(f", {needs[name]:g} {name}" for name in others)
    has = "".join(f", {total.get(name, 0.0):g} {name}" for name in others)
    parts = ", ".join(part.describe() for part in demand.parts)
    found = (
        f"the run reserves {needs['CPU']:g} CPUs and {needs['GPU']:g} GPUs{amounts} ({parts}); Ray "
        f"has {total.get('CPU', 0.0):g} CPUs and {total.get('GPU', 0.0):g} GPUs{has}"
        + "".join(f"; {line}" for line in homeless)
    )
    if not os.environ.get("RAY_ADDRESS", "").strip():
        raise ConfigError(
            f"{found}: lower rollouts.workers, cluster.gpus_per_worker or cluster.gpus_per_rank "
            "(fractions share a GPU), or join a cluster with RAY_ADDRESS"
        )
    return f"{found}: what has no room waits until nodes join"


def _without_node(demand: Demand) -> list[str]:
    """Return a line for each kind of process that no node of the cluster could run."""
    nodes = usable_nodes([part.place for part in demand.parts])
    lines = []
    for part, suiting in zip(demand.parts, nodes, strict=True):
        wishes = [f"{key}={condition}" for key, condition in part.place.labels.items()]
        if part.place.accelerator_type:
            wishes.append(f"accelerator type {part.place.accelerator_type}")
        if not suiting and wishes:
            lines.append(f"no node has {', '.join(wishes)}, which the {part.what} need")
    return lines


def room_for_workers(config: RunConfig, group: str = DEFAULT_GROUP) -> int:
    """Return how many more workers of a group the cluster has room for now."""
    free: Mapping[str, float] = ray.available_resources()
    shape = worker_places(config)[group].shape
    return min(int(free.get(name, 0.0) // share) for name, share in shape.items())


class NodeRequests:
    """Asks the cluster's autoscaler for the nodes that a run needs, and withdraws that at the end.

    Ray keeps one request per cluster, that of whoever asked last, and nodes that it asks for stay
    while they are idle. A cluster without an autoscaler ignores it.
    """

    def __init__(self) -> None:
        self._asked: Any = None

    def ask(self, demand: Demand) -> None:
        """Ask for room for `demand`; nothing is sent if it is what was asked for last."""
        bundles, selectors = demand.bundles()
        if (bundles, selectors) == self._asked:
            return
        self._send(bundles, selectors)
        self._asked = (bundles, selectors)

    def withdraw(self) -> None:
        """Ask for nothing any more."""
        if self._asked is not None:
            self._send([], [])
            self._asked = None

    def _send(self, bundles: list[dict[str, float]], selectors: list[dict[str, str]]) -> None:
        try:
            request_resources(bundles=bundles, bundle_label_selectors=selectors or None)
        except Exception as error:  # a cluster that cannot be asked may still have the nodes
            logger.warning("the autoscaler could not be asked for nodes: %r", error)
