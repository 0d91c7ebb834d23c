"""Number and size of pods, from a recipe, its memory and the size of a node."""

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.deploy.pod_groups import GIB, HostMemory, PodGroup, pod_groups
from cluster.deploy.render_options import RenderOptions
from envs.errors import ConfigError

MEMORY = HostMemory(rank=15 * GIB, workers={"default": 15 * GIB, "big": 30 * GIB}, version=15 * GIB)


def options(**changes: object) -> RenderOptions:
    return RenderOptions(**{"kind": "rayjob", "name": "first", **changes})  # type: ignore[arg-type]


def groups_of(config: RunConfig, **changes: object) -> dict[str, PodGroup]:
    return {group.name: group for group in pod_groups(config, MEMORY, options(**changes))}


def gpu_recipe(*overrides: str) -> RunConfig:
    return load_config("qwen2.5-7b", overrides)


def test_ranks_and_workers_fill_a_node_each() -> None:
    groups = groups_of(gpu_recipe())
    assert set(groups) == {"head", "learner", "rollout"}
    learner, rollout = groups["learner"], groups["rollout"]
    assert (learner.replicas, learner.ranks, learner.gpus, learner.cpus) == (1, 4, 4, 16)
    assert (rollout.replicas, rollout.workers, rollout.gpus) == (1, 4, 4)
    assert groups["head"].gpus == 0


@pytest.mark.parametrize(
    ("workers", "parallel", "room", "expected"),
    [
        (4, 1, 2, (2, 2, 2)),
        (5, 1, 4, (2, 3, 3)),
        (2, 4, 8, (1, 2, 8)),
        (3, 4, 4, (3, 1, 4)),
        (64, 1, 8, (8, 8, 8)),
    ],
)
def test_engines_are_spread_over_pods(
    workers: int, parallel: int, room: int, expected: tuple[int, int, int]
) -> None:
    config = gpu_recipe(
        f"rollouts.workers={workers}",
        f"engine.tensor_parallel_size={parallel}",
        f"cluster.gpus_per_worker={parallel}",
    )
    group = groups_of(config, gpus_per_pod=room)["rollout"]
    assert (group.replicas, group.workers, group.gpus) == expected
    assert group.replicas * group.workers >= workers


def test_memory_holds_every_rank_and_shared_memory_two_versions() -> None:
    learner = groups_of(gpu_recipe())["learner"]
    assert learner.shared_memory >= 2 * MEMORY.version
    assert learner.memory >= 4 * MEMORY.rank + learner.shared_memory
    rollout = groups_of(gpu_recipe())["rollout"]
    assert rollout.memory >= 4 * MEMORY.workers["default"] + rollout.shared_memory


def test_a_cluster_that_grows_adds_pods_of_workers_only() -> None:
    groups = groups_of(gpu_recipe(), gpus_per_pod=4, max_workers=10)
    rollout, learner = groups["rollout"], groups["learner"]
    assert (rollout.least, rollout.replicas, rollout.most) == (1, 1, 3)
    assert learner.least == learner.most == 1
    with pytest.raises(ConfigError, match=r"--max-workers of at least rollouts\.workers"):
        groups_of(gpu_recipe(), max_workers=3)


def test_learner_and_engine_on_one_gpu_are_one_pod() -> None:
    shared = ("cluster.gpus_per_rank=0.5", "cluster.gpus_per_worker=0.5")
    config = gpu_recipe(*shared, "cluster.transport=cuda_ipc")
    groups = groups_of(config)
    assert set(groups) == {"head", "shared"}
    group = groups["shared"]
    assert (group.replicas, group.ranks, group.workers, group.gpus) == (1, 4, 4, 4)
    assert group.shared_memory < 2 * MEMORY.version
    with pytest.raises(ConfigError, match="share GPUs, so they need one pod, of 4 GPUs"):
        groups_of(config, gpus_per_pod=2)
    with pytest.raises(ConfigError, match="expected no --max-workers"):
        groups_of(config, max_workers=8)


def test_without_gpus_every_worker_has_a_pod_of_its_own() -> None:
    groups = groups_of(load_config("catalog", ["rollouts.workers=3", "learner.ranks=2"]))
    assert (groups["learner"].replicas, groups["learner"].ranks) == (1, 2)
    assert (groups["rollout"].replicas, groups["rollout"].workers) == (3, 1)
    assert all(group.gpus == 0 and group.cpus >= 1 for group in groups.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.gpus_per_worker=16", "cluster.gpus_per_worker = 16 needs a pod"),
        ("cluster.shm_dir=/srv/weights", "expected cluster.shm_dir = '/dev/shm'"),
    ],
)
def test_what_fits_no_pod_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        groups_of(gpu_recipe(override))


def test_a_resource_that_no_group_has_is_refused() -> None:
    config = gpu_recipe("cluster.tool_placement=cluster", "cluster.tool_node_resource=tools")
    with pytest.raises(ConfigError, match=r"no cluster\.tool_node_resource"):
        groups_of(config)


def test_groups_of_workers_have_pods_of_their_own() -> None:
    config = gpu_recipe(
        "rollouts.workers=2",
        "rollouts.groups.big={workers=3,tensor_parallel_size=4,gpus_per_worker=4}",
        "rollouts.groups.big.labels={zone='in(a,b)',pool='!spot'}",
        "rollouts.groups.big.resources={far=1}",
        "rollouts.groups.off.workers=0",
    )
    groups = groups_of(config, gpus_per_pod=8, max_workers=6)
    assert list(groups) == ["head", "learner", "rollout", "rollout-big"]
    big, rollout = groups["rollout-big"], groups["rollout"]
    assert (big.replicas, big.workers, big.gpus, big.most) == (2, 2, 8, 3)
    assert (rollout.replicas, rollout.workers, rollout.gpus) == (1, 2, 2)
    assert (big.labels, big.resources) == ({"zone": "a"}, {"far": 2})
    assert big.memory >= 2 * MEMORY.workers["big"] + big.shared_memory
    with pytest.raises(ConfigError, match=r"expected no \[rollouts.groups\], found big"):
        groups_of(
            config.model_copy(
                update={"cluster": config.cluster.model_copy(update={"transport": "cuda_ipc"})}
            )
        )
