"""The learner's ranks as one, on a Ray of their own."""

import asyncio
import time

import pyarrow as pa
import pytest

from cluster import learner_group
from cluster.config import RunConfig
from cluster.learner_group import LearnerGroup, LearnerPlan
from cluster.ray_session import ray_session

pytestmark = pytest.mark.real


class Diligent:
    """A rank that imitates for an hour; the real one needs a model for that."""

    def __init__(self, transport: str, shm_dir: str) -> None:
        del transport, shm_dir

    def sft(self, table: pa.Table, seed: int) -> list[dict[str, float]]:
        del table, seed
        time.sleep(3600)
        return []

    def close(self) -> None:
        pass


def test_a_rank_at_work_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_group, "LearnerActor", Diligent)
    monkeypatch.setattr(learner_group, "_CLOSE_S", 1.0)

    async def stopped() -> None:
        learner = LearnerGroup(LearnerPlan(RunConfig(), "tiny"))
        imitation = asyncio.create_task(learner.sft(pa.table({"x": [1]}), 1))
        await asyncio.sleep(1)
        imitation.cancel()
        async with asyncio.timeout(60):
            await learner.close()

    with ray_session(RunConfig()):
        asyncio.run(stopped())
