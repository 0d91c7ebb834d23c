"""A Ray session for one command, on an existing cluster or on this machine."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray

from cluster.checks.machine import memory_limit
from cluster.config.run_config import ClusterSection, RunConfig
from cluster.fleet.ray_address import check_ray_address, no_cluster, own_cluster
from cluster.fleet.ray_environment import RAY_START_WAIT, RAY_START_WAIT_S
from envs.errors import ConfigError, InfraError

LEAST_STORE_BYTES = 512 * 2**20
"""Smallest object store of a Ray that is started here."""
_SHARE_OF_MEMORY = 0.3
"""Ray's own default."""
_SHARE_OF_SHM = 0.5
"""Ray's own default takes 95 % of what is free; weights need room there too: two versions of them
(`cluster.shm_dir`).
"""


@contextmanager
def ray_session(config: RunConfig) -> Iterator[None]:
    """Connect to the cluster in RAY_ADDRESS (Ray sets it for submitted jobs), or start Ray here.

    `auto` is the cluster that this user has started on this machine. Raises MissingError if no
    cluster answers at RAY_ADDRESS, InfraError if Ray does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address == "auto":
        address = own_cluster()
    if address:
        check_ray_address(address)
        _join(address)
    else:
        _start(config)
    try:
        yield
    finally:
        ray.shutdown()


def room_for_workers(section: ClusterSection) -> int:
    """Return how many more rollout workers the cluster has room for now."""
    free: Mapping[str, float] = ray.available_resources()
    shares = {"CPU": section.cpus_per_worker, "GPU": section.gpus_per_worker}
    return min(int(free.get(name, 0.0) // share) for name, share in shares.items() if share)


def missing_resources(section: ClusterSection, *, workers: int, ranks: int) -> str:
    """Compare what workers and ranks reserve with what Ray has in all; say what is missing, or "".

    A run waits for what is missing, since nodes may join. Raises ConfigError where none can: in a
    Ray that this command has started.
    """
    cpus = (section.cpus_per_worker, section.cpus_per_rank)
    gpus = (section.gpus_per_worker, section.gpus_per_rank)
    needs = {
        name: workers * share[0] + ranks * share[1]
        for name, share in (("CPU", cpus), ("GPU", gpus))
    }
    total: Mapping[str, float] = ray.cluster_resources()
    if all(total.get(name, 0.0) >= amount for name, amount in needs.items()):
        return ""
    found = (
        f"the run reserves {needs['CPU']:g} CPUs and {needs['GPU']:g} GPUs ({workers} rollout "
        f"workers of {cpus[0]:g} and {gpus[0]:g}, {ranks} learner ranks of {cpus[1]:g} and "
        f"{gpus[1]:g}); Ray has {total.get('CPU', 0.0):g} CPUs and {total.get('GPU', 0.0):g} GPUs"
    )
    if not os.environ.get("RAY_ADDRESS", "").strip():
        raise ConfigError(
            f"{found}: lower rollouts.workers, cluster.gpus_per_worker or cluster.gpus_per_rank "
            "(fractions share a GPU), or join a cluster with RAY_ADDRESS"
        )
    return f"{found}: what has no room waits until nodes join"


def object_store_bytes(memory: int, shm: int) -> int:
    """Return the size of a local Ray's object store where `memory` and `shm` bytes are free.

    Every episode passes through it, and stays until the learner has had it: at 13 bytes a token,
    8,192 of 16,000 tokens are 1.7 GB, and what does not fit is spilled to the disk and read again.
    The size is a limit: memory that no episode has used is not taken.
    """
    return max(int(min(_SHARE_OF_MEMORY * memory, _SHARE_OF_SHM * shm)), LEAST_STORE_BYTES)


def _join(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False)
    except Exception as error:  # Ray raises several types for this, plain Exception among them
        raise no_cluster(address, _one_line(error)) from error


def _start(config: RunConfig) -> None:
    """Start Ray with at least as many CPUs as the recipe reserves; actors may share real cores."""
    section = config.cluster
    wanted = (
        config.rollouts.workers * section.cpus_per_worker
        + config.learner.ranks * section.cpus_per_rank
    )
    try:
        ray.init(
            address="local",  # or it joins what `ray start` left running, and refuses num_cpus
            num_cpus=max(psutil.cpu_count() or 1, int(wanted) + 2),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=object_store_bytes(
                min(psutil.virtual_memory().available, memory_limit(Path("/sys/fs/cgroup"))),
                shutil.disk_usage("/dev/shm").free,
            ),
        )
    except Exception as error:  # a start that times out is a plain Exception
        waited = os.environ.get(RAY_START_WAIT, "30")
        raise InfraError(
            f"Ray did not start on this machine: {_one_line(error)} Try again with fewer programs "
            f"running, or allow more time with {RAY_START_WAIT}={3 * RAY_START_WAIT_S} (now "
            f"{waited} seconds). Ray's own logs: raylet.err and gcs_server.err in "
            "/tmp/ray/session_latest/logs"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
