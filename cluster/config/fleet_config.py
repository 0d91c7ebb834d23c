"""The sections of a recipe about rollout workers, and about what Ray reserves."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from envs.config import Section

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_LABEL = re.compile(r"!?(in\([A-Za-z0-9_., -]+\)|[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)")
"""Ray's conditions on a label."""


class WorkerGroup(Section):
    """`[rollouts.groups.NAME]`: workers of another kind beside `rollouts.workers`.

    Keys that also stand in `[cluster]`, `[engine]` or `[rollouts]` have the value from there unless
    the group sets its own.
    """

    workers: int = Field(default=1, ge=0)
    """Number of workers of the group at the start; `trialrun scale RUN NAME=N` changes it."""
    episodes_per_worker: int = Field(default=128, ge=1)
    """As `rollouts.episodes_per_worker`."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """As `cluster.cpus_per_worker`."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """As `cluster.gpus_per_worker`; 0 runs the group's vLLM on the CPU."""
    accelerator_type: str = ""
    """Type of GPU that the nodes must have, in Ray's words, such as `H100`; empty means any."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    """Further Ray resources that a worker reserves, such as `{"highmem" = 1}`."""
    labels: dict[str, str] = Field(default={})
    """Labels that the nodes must have, as in Ray's label_selector: `{"zone" = "a"}`,
    `{"zone" = "in(a,b)"}`, `{"zone" = "!a"}`.
    """
    tensor_parallel_size: int = Field(default=1, gt=0)
    """As `engine.tensor_parallel_size`."""
    max_num_seqs: int = Field(default=64, gt=0)
    """As `engine.max_num_seqs`."""
    kv_cache_mib: int = Field(default=512, gt=0)
    """As `engine.kv_cache_mib`."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """As `engine.gpu_memory_utilization`."""
    enforce_eager: bool = True
    """As `engine.enforce_eager`."""

    @model_validator(mode="after")
    def _labels_are_conditions(self) -> Self:
        for key, condition in self.labels.items():
            if not key or not _LABEL.fullmatch(condition):
                raise ValueError(
                    f"labels: expected a, !a, in(a,b) or !in(a,b) as condition for the label "
                    f"{key!r}, found {condition!r}"
                )
        return self


_LEAST_KEEP_S = 30
SHARED_KEYS = {
    "rollouts": ("episodes_per_worker",),
    "cluster": ("cpus_per_worker", "gpus_per_worker"),
    "engine": (
        *("tensor_parallel_size", "max_num_seqs", "kv_cache_mib"),
        *("gpu_memory_utilization", "enforce_eager"),
    ),
}
"""Keys of a group that stand in other sections too, which give what the group leaves out."""
DEFAULT_GROUP = "default"
"""Name of the workers that `rollouts.workers` counts; no other group may have it."""


class RolloutsSection(Section):
    """`[rollouts]`: the fleet of rollout workers and how groups are collected."""

    workers: int = Field(default=2, ge=0)
    """Number of rollout workers; each has its own engine. With `[rollouts.groups]` it is 0 unless
    it is set, else at least 1.
    """
    groups: dict[str, WorkerGroup] = Field(default={})
    """Further workers, by group: of other sizes, on other nodes. All groups run the same model and
    get the same weights; an episode goes to whichever worker is free.
    """
    episodes_per_worker: int = Field(default=128, ge=1)
    """Maximum number of episodes that a worker runs concurrently."""
    groups_per_step: int = Field(default=8, ge=1)
    """Number of groups in one learner step."""
    group_size: int = Field(default=8, ge=2)
    """Number of episodes in one group (rollouts of the same task)."""
    max_staleness: int = Field(default=1, ge=0)
    """Maximum number of policy versions by which a token may lag behind the learner; 0 is strictly
    on-policy.
    """
    max_refills: int = Field(default=8, ge=0)
    """Maximum number of groups without reward variance that one step replaces by new groups;
    further ones go to the learner as they are.
    """
    max_drops_per_group: int = Field(default=16, ge=1)
    """Maximum number of groups that are dropped, for any reason (too old, lost to infrastructure
    failures, a prompt without room), per group that a step needs; with more the run ends with an
    error that names the reasons. `max_refills` come on top.
    """
    max_attempts: int = Field(default=16, ge=1)
    """Maximum number of attempts at one episode after infrastructure failures; after the last, the
    group continues without the episode. If one tool call in ten fails and an episode makes 8 calls,
    16 attempts complete a group of 8 in 99.9 % of cases: (1 - (1 - 0.9^8)^16)^8. Attempts cost
    nothing as long as nothing fails; 10 calls would need 21.
    """
    episode_timeout_s: float = Field(default=300.0, gt=0)
    """Deadline for one episode, from its assignment to its answer, beside the seconds of both
    phases that its tools may take; a worker that exceeds it is replaced.
    """
    pool_timeout_s: float = Field(default=900.0, gt=0)
    """How long a scheduled episode waits for a healthy worker before the run fails."""
    ping_timeout_s: float = Field(default=60.0, gt=0)
    """A worker whose process computes, but which does not answer health checks for this long, is
    replaced. One that is dead, stopped, or computes nothing is replaced within 10 seconds.
    """
    kept_turns_mib: int = Field(default=1024, ge=0)
    """Memory of the driver, in MiB, for the finished turns of episodes in progress. If a worker is
    lost, another one goes on from them where the tools are Python code whose calls can be replayed;
    else the episode starts anew. 0 turns it off.
    """
    drain_timeout_s: float = Field(default=0.0, ge=0)
    """How long a surplus worker may go on with its episodes; then other workers run what is left.
    0, the default: as long as an episode may take (`episode_timeout_s`).
    """

    @model_validator(mode="before")
    @classmethod
    def _groups_replace_the_default(cls, section: Any) -> Any:
        """Without a word about `workers`, a recipe with groups has no others."""
        if isinstance(section, Mapping) and section.get("groups") and "workers" not in section:
            return {**section, "workers": 0}
        return section

    @model_validator(mode="after")
    def _has_workers(self) -> Self:
        if unfit := [name for name in self.groups if not _NAME.fullmatch(name)]:
            raise ValueError(
                f"rollouts.groups.{unfit[0]}: expected a name of at most 32 small letters, digits, "
                "'-' and '_' that starts with a letter"
            )
        if DEFAULT_GROUP in self.groups:
            raise ValueError(
                f"rollouts.groups.{DEFAULT_GROUP}: this is the name of the workers that "
                "rollouts.workers counts; choose another one"
            )
        if not self.workers and not any(group.workers for group in self.groups.values()):
            raise ValueError(
                f"rollouts.workers ({self.workers}) must be at least 1, or a group of "
                "[rollouts.groups] must have workers"
            )
        return self


class ClusterSection(Section):
    """`[cluster]`: resources that Ray reserves, the transport of weights, and the placement of tool
    servers.
    """

    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs of a rollout worker."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs of a rollout worker; 0 runs vLLM on the CPU."""
    cpus_per_rank: float = Field(default=1.0, gt=0)
    """CPUs of a learner rank."""
    gpus_per_rank: float = Field(default=0.0, ge=0)
    """GPUs of a learner rank; 0 trains on the CPU."""
    transport: Literal["shm", "cuda_ipc"] = "shm"
    """How weights reach the engines. `shm`: shared memory; on nodes other than the learner's it is
    filled through Ray's object store. `cuda_ipc`: CUDA IPC, if learner and engine share a GPU.
    """
    shm_dir: str = "/dev/shm"
    """Memory-backed folder for the `shm` transport on every node; it holds two weight versions."""
    learner_timeout_s: float = Field(default=1800.0, gt=0)
    """Deadline for one learner step, push or checkpoint."""
    learner_restarts: int = Field(default=3, ge=0)
    """Restarts of the learner after a rank was lost, without a new checkpoint in between."""
    quarantine_losses: int = Field(default=3, ge=0)
    """Rollout workers lost on one node within `quarantine_window_s` after which it gets no new ones
    for `quarantine_s`; never the last node that can run them. 0 turns it off.
    """
    quarantine_window_s: float = Field(default=600.0, gt=0)
    """Time within which losses on a node are counted, in seconds."""
    quarantine_s: float = Field(default=1800.0, gt=0)
    """Seconds after which new workers may start on the node again."""
    keep_workers_s: float = Field(default=300.0, ge=0)
    """On a cluster: how long rollout workers and tool servers of `trialrun train` go on after their
    driver died, in seconds. A driver that resumes the run within that time takes them over, with
    the episodes that they have finished. Less than 30 is not possible, except for 0, which ends
    them with their driver.
    """
    tool_placement: Literal["worker", "node", "cluster"] = "worker"
    """Where tool servers run. `worker`: one next to every rollout worker; `node`: on every node, on
    UNIX sockets for the workers of that node; `cluster`: on every node, on TCP for all workers.
    """
    tool_servers_per_node: int = Field(default=1, ge=1)
    """Tool servers per node (`node`, `cluster`); one server process can use about one CPU."""
    tool_node_resource: str = ""
    """`cluster`: only nodes with this Ray resource run tool servers; empty means every node."""

    @model_validator(mode="after")
    def _placement_has_its_keys(self) -> Self:
        if 0 < self.keep_workers_s < _LEAST_KEEP_S:
            raise ValueError(
                f"keep_workers_s ({self.keep_workers_s:g}) must be 0 or at least {_LEAST_KEEP_S}: "
                "a busy driver would lose workers that are well"
            )
        if self.tool_placement == "worker" and self.tool_servers_per_node != 1:
            raise ValueError(
                f"tool_servers_per_node ({self.tool_servers_per_node}) needs tool_placement "
                "'node' or 'cluster': with 'worker' every rollout worker has one server"
            )
        if self.tool_placement != "cluster" and self.tool_node_resource:
            raise ValueError(
                f"tool_node_resource ({self.tool_node_resource!r}) needs tool_placement 'cluster': "
                f"with {self.tool_placement!r} servers run where the workers are"
            )
        return self


def with_shared_keys(tree: Any) -> Any:
    """Return the tree of a recipe in which each group has the keys that it leaves out, as the
    sections have them that apply to all workers. What is no tree of groups stays as it is.
    """
    rollouts = tree.get("rollouts") if isinstance(tree, Mapping) else None
    groups = rollouts.get("groups") if isinstance(rollouts, Mapping) else None
    if not isinstance(rollouts, Mapping) or not isinstance(groups, Mapping) or not groups:
        return tree
    shared: dict[str, Any] = {}
    for name, keys in SHARED_KEYS.items():
        section = tree.get(name)
        given = section if isinstance(section, Mapping) else {}
        shared |= {key: given[key] for key in keys if key in given}
    complete = {
        name: {**shared, **group} if isinstance(group, Mapping) else group
        for name, group in groups.items()
    }
    return {**tree, "rollouts": {**rollouts, "groups": complete}}
