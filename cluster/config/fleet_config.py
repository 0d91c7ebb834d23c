"""The sections of a recipe about rollout workers, and about what Ray reserves."""

from typing import Literal, Self

from pydantic import Field, model_validator

from envs.config import Section


class RolloutsSection(Section):
    """`[rollouts]`: the fleet of rollout workers and how groups are collected."""

    workers: int = Field(default=2, ge=1)
    """Number of rollout workers; each has its own engine."""
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
    """Deadline for one episode, from its assignment to its answer; a worker that exceeds it is
    replaced.
    """
    pool_timeout_s: float = Field(default=900.0, gt=0)
    """How long a scheduled episode waits for a healthy worker before the run fails."""
    ping_timeout_s: float = Field(default=60.0, gt=0)
    """A worker whose process computes, but which does not answer health checks for this long, is
    replaced. One that is dead, stopped, or computes nothing is replaced within 10 seconds.
    """
    drain_timeout_s: float = Field(default=0.0, ge=0)
    """How long a surplus worker may go on with its episodes; then other workers run what is left.
    0, the default: as long as an episode may take (`episode_timeout_s`).
    """


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
