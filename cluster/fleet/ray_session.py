"""A Ray session for one command, on an existing cluster or on this machine."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray

from cluster.checks.machine import memory_limit
from cluster.config.run_config import RunConfig
from cluster.fleet.placement.demand import demand_of
from cluster.fleet.ray_address import check_ray_address, no_cluster, own_cluster
from cluster.fleet.ray_environment import RAY_START_WAIT, RAY_START_WAIT_S
from envs.errors import InfraError

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
    wanted = demand_of(config).total.get("CPU", 0.0)
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
