"""A driver that starts a pool and two episodes on it, and then waits to be killed.

python -m tests.cluster.fleet.survivors.driver FOLDER KEY
"""

import asyncio
import sys
from pathlib import Path

import ray

from rollout.config import EpisodeConfig
from rollout.store.journal import replace_file
from tests.cluster.conftest import Numbered, leases_of
from tests.cluster.fleet.survivors.pools import pids_of, pool_of


async def main(folder: Path, key: str) -> None:
    ray.init(log_to_driver=False)
    task = Numbered().tasks("train", 0, 1)[0]
    async with pool_of(folder, key) as pool:
        await pool.wait_healthy(2)
        episodes = [
            asyncio.create_task(pool.run_episode(lease, task, EpisodeConfig(prompt="compact")))
            for lease in leases_of(task, 2)
        ]
        while sum(worker.running for worker in pool.workers) < len(episodes):
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)  # the calls are on their way
        replace_file(folder / "pids", " ".join(map(str, pids_of(pool))).encode())
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
