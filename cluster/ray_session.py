"""Ray for the time of one command: the cluster that a job was submitted to, or one of our own."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import ray

from cluster.config import RunConfig
from envs.errors import MissingError

OBJECT_STORE_BYTES = 512 * 2**20
"""Object store of a local Ray; trajectories pass through it, weights do not."""


@contextmanager
def ray_session(config: RunConfig) -> Iterator[None]:
    """Connect to the cluster in RAY_ADDRESS (set for submitted jobs), else start Ray on this
    machine.

    A local Ray is told of as many CPUs as the recipe reserves, since its actors share two cores
    well.
    Raises MissingError when RAY_ADDRESS leads nowhere.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    if address:
        try:
            ray.init(address=address, log_to_driver=False)
        except ConnectionError as error:
            raise MissingError(f"no Ray cluster at RAY_ADDRESS={address}: {error}") from None
    else:
        section = config.cluster
        wanted = (
            config.rollouts.workers * section.cpus_per_worker
            + config.learner.ranks * section.cpus_per_rank
        )
        ray.init(
            num_cpus=max(psutil.cpu_count() or 1, int(wanted) + 2),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    try:
        yield
    finally:
        ray.shutdown()
