"""`trialrun render`: a recipe as objects of KubeRay, sized by `trialrun estimate`."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from cluster.checks.estimate import (
    LOADING,
    OFFLOADED,
    RANKS,
    Estimate,
    host_bytes,
    run_estimate,
)
from cluster.config.run_config import RunConfig, to_toml
from cluster.deploy.kuberay import Cluster
from cluster.deploy.manifest import manifest
from cluster.deploy.pod_groups import HostMemory, pod_groups
from cluster.deploy.render_options import RenderOptions
from cluster.deploy.volume_paths import on_volume
from envs.errors import ConfigError
from learner.pretrained.resolve import SMOLLM2, TINY
from rollout.chat.shipped import shipped_names


def run_render(
    config: RunConfig,
    options: RenderOptions,
    gpu_memory_gib: float,
    model_config: Path | None,
    command: Sequence[str],
) -> str:
    """Return the manifest of a recipe, YAML.

    Raises ConfigError for a recipe that does not fit, MissingError for an unknown architecture.
    """
    estimate, _ = run_estimate(config, gpu_memory_gib, model_config)
    if estimate.problems:
        raise ConfigError(
            "the recipe does not fit, so its pods would fail: "
            + "; ".join(estimate.problems)
            + ". See `trialrun estimate`; --gpu-memory-gib is the memory of one GPU"
        )
    placed, inputs = on_volume(config, frozenset((TINY, SMOLLM2, *shipped_names())))
    cluster = Cluster(
        options=options,
        version=version("trialrun"),
        ray_version=version("ray"),
        recipe=to_toml(placed),
        groups=pod_groups(placed, host_memory(estimate, config), options),
    )
    return manifest(cluster, inputs, command)


def host_memory(estimate: Estimate, config: RunConfig) -> HostMemory:
    """Return the host memory of one rank, one engine and one version of the weights, in bytes.

    An engine on GPUs reads all weights through the page cache, so they are counted once.
    """
    host, ranks = estimate.host, config.learner.ranks
    busy = host.get(OFFLOADED, 0) + host.get(LOADING, 0) + host.get(RANKS, 0)
    kinds = config.worker_kinds()
    return HostMemory(
        rank=-(-busy // ranks),
        workers={
            name: host_bytes(engine)
            if kinds[name].cluster.gpus_per_worker <= 0
            else engine.weights * kinds[name].engine.tensor_parallel_size
            for name, engine in estimate.engines.items()
        },
        version=estimate.push,
    )
