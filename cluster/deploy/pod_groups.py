"""How many pods of which size a recipe needs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cluster.config.fleet_config import DEFAULT_GROUP
from cluster.config.run_config import RunConfig
from cluster.deploy.render_options import RenderOptions
from envs.errors import ConfigError

GIB = 2**30
OBJECT_STORE = 2 * GIB
"""Ray's object store of a pod: trajectories and parts of weights pass through it."""
_SLACK = GIB
"""Shared memory for the queues of vLLM and NCCL."""
_POD = 2 * GIB
"""Raylet, agents, relays of weights."""
_PROCESS = 4 * GIB
"""One learner rank or engine beside its weights: Python, torch, CUDA's context on the host."""
_TOOLS = 4 * GIB
"""One tool server with its sessions; a session shares most pages with the others."""
_HEAD = 8 * GIB
"""Head and driver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """Bytes of host memory, as `trialrun estimate` computes them."""

    rank: int
    """One learner rank at its peak: it loads the model, or holds offloaded states."""
    workers: Mapping[str, int]
    """One engine of each group of workers, with the weights as it reads them."""
    version: int
    """One published version of the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodGroup:
    """Pods of one kind; sizes are those of one pod, memory in bytes with shared memory included."""

    name: str
    """`head`, `learner`, `rollout`, `shared`, or `rollout-GROUP`."""
    replicas: int
    least: int
    most: int
    cpus: int
    gpus: int
    memory: int
    shared_memory: int
    ranks: int = 0
    workers: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the Ray node in the pod."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Further resources of the Ray node in the pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    """What one pod runs."""

    ranks: int = 0
    workers: int = 0
    group: str = DEFAULT_GROUP
    """Group of the workers."""


def pod_groups(
    config: RunConfig, memory: HostMemory, options: RenderOptions
) -> tuple[PodGroup, ...]:
    """Return the head and the groups of workers. Raises ConfigError for what fits into no pod."""
    _check_sizes(config, options)
    if _share_gpus(config):
        return (_head(), _shared_group(config, memory, options))
    section = config.cluster
    ranks_pods, ranks = _spread(
        "cluster.gpus_per_rank", config.learner.ranks, section.gpus_per_rank, options.gpus_per_pod
    )
    # Without GPUs all ranks are together, and every worker is alone: pods come and go with workers.
    if not section.gpus_per_rank:
        ranks_pods, ranks = 1, config.learner.ranks
    found = [
        _head(),
        _group("learner", config, memory, _Contents(ranks=ranks), (ranks_pods, ranks_pods)),
    ]
    for name, kind in config.worker_kinds().items():
        if kind.rollouts.workers:
            found.append(_rollout_group(name, config, kind, memory, options))
    return tuple(found)


def _rollout_group(
    name: str, config: RunConfig, kind: RunConfig, memory: HostMemory, options: RenderOptions
) -> PodGroup:
    """Return the pods of one group of workers, which `kind` describes alone."""
    count, share = kind.rollouts.workers, kind.cluster.gpus_per_worker
    default = name == DEFAULT_GROUP
    key = "cluster.gpus_per_worker" if default else f"rollouts.groups.{name}.gpus_per_worker"
    pods, workers = _spread(key, count, share, options.gpus_per_pod)
    most = math.ceil(max(options.max_workers, count) / workers)
    contents = _Contents(workers=workers, group=name)
    if default:
        return _group("rollout", kind, memory, contents, (pods, most))
    group = config.rollouts.groups[name]
    made = _group(f"rollout-{name.replace('_', '-')}", kind, memory, contents, (pods, most))
    return replace(
        made,
        labels={key: label for key, text in group.labels.items() if (label := _label(text))},
        resources={resource: workers * n for resource, n in group.resources.items()},
    )


def _label(condition: str) -> str:
    """Return a label that meets a condition; empty for what excludes others only."""
    if condition.startswith("!"):
        return ""
    return condition.removeprefix("in(").removesuffix(")").partition(",")[0].strip()


def _check_sizes(config: RunConfig, options: RenderOptions) -> None:
    if config.cluster.shm_dir != "/dev/shm":
        raise ConfigError(
            f"expected cluster.shm_dir = '/dev/shm', found {config.cluster.shm_dir!r}: it is the "
            "memory-backed folder that every pod gets; leave the key out"
        )
    if 0 < options.max_workers < config.rollouts.workers:
        raise ConfigError(
            f"expected --max-workers of at least rollouts.workers ({config.rollouts.workers}), "
            f"found {options.max_workers}"
        )
    if config.cluster.tool_node_resource:
        raise ConfigError(
            "expected no cluster.tool_node_resource, found "
            f"{config.cluster.tool_node_resource!r}: the rendered groups have no such resource; "
            "leave the key out, and tool servers run next to the workers"
        )


def _share_gpus(config: RunConfig) -> bool:
    """Whether learner ranks and engines use the same GPUs, so that they need one pod."""
    section = config.cluster
    both = section.gpus_per_rank > 0 and section.gpus_per_worker > 0
    fits = section.gpus_per_rank + section.gpus_per_worker <= 1
    return section.transport == "cuda_ipc" or (both and fits)


def _shared_group(config: RunConfig, memory: HostMemory, options: RenderOptions) -> PodGroup:
    """One pod with all ranks and engines: memory of a GPU is shared only inside a pod."""
    if config.rollouts.groups:
        raise ConfigError(
            "expected no [rollouts.groups], found "
            f"{', '.join(config.rollouts.groups)}: learner and engines share GPUs, so all of them "
            "are in one pod; set cluster.gpus_per_rank=1 cluster.gpus_per_worker=1"
        )
    contents = _Contents(ranks=config.learner.ranks, workers=config.rollouts.workers)
    group = _group("shared", config, memory, contents, (1, 1))
    if options.max_workers > config.rollouts.workers:
        raise ConfigError(
            f"expected no --max-workers, found {options.max_workers}: learner and engines share "
            "GPUs, so their number is fixed; set gpus_per_rank and gpus_per_worker to 1 to grow"
        )
    if group.gpus > options.gpus_per_pod:
        raise ConfigError(
            f"learner and engines share GPUs, so they need one pod, of {group.gpus} GPUs; a pod "
            f"has at most --gpus-per-pod {options.gpus_per_pod}: raise it if a node has more, "
            "lower learner.ranks and rollouts.workers, or set cluster.gpus_per_rank=1 "
            "cluster.gpus_per_worker=1"
        )
    return group


def _spread(key: str, count: int, share: float, room: int) -> tuple[int, int]:
    """Return the number of pods, and how many of `count` are in each, as evenly as possible."""
    if not share:
        return count, 1
    capacity = math.floor(room / share)
    if not capacity:
        raise ConfigError(
            f"{key} = {share:g} needs a pod with as many GPUs; a pod has at most "
            f"--gpus-per-pod {room}: raise it if a node has more"
        )
    pods = math.ceil(count / capacity)
    return pods, math.ceil(count / pods)


def _head() -> PodGroup:
    shared = OBJECT_STORE + _SLACK
    return PodGroup(
        name="head",
        replicas=1,
        least=1,
        most=1,
        cpus=2,
        gpus=0,
        memory=_HEAD + shared,
        shared_memory=shared,
    )


def _group(
    name: str,
    config: RunConfig,
    memory: HostMemory,
    contents: _Contents,
    pods: tuple[int, int],
) -> PodGroup:
    """Return a group of `pods`, at first and at most, with `contents` in each."""
    section = config.cluster
    ranks, workers = contents.ranks, contents.workers
    versions = 2 * memory.version if section.transport == "shm" else 0
    shared = _whole_gib(versions + OBJECT_STORE + _SLACK)
    servers = workers if section.tool_placement == "worker" else section.tool_servers_per_node
    worker = memory.workers[contents.group] if workers else 0
    used = _POD + ranks * (memory.rank + _PROCESS) + workers * (worker + _PROCESS)
    used += servers * _TOOLS
    return PodGroup(
        name=name,
        replicas=pods[0],
        least=pods[0],
        most=pods[1],
        cpus=math.ceil(ranks * section.cpus_per_rank + workers * section.cpus_per_worker),
        gpus=math.ceil(ranks * section.gpus_per_rank + workers * section.gpus_per_worker),
        memory=_whole_gib(used) + shared,
        shared_memory=shared,
        ranks=ranks,
        workers=workers,
    )


def _whole_gib(size: int) -> int:
    return math.ceil(size / GIB) * GIB
