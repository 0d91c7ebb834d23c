"""The learner's ranks behind one object: the stream of an SFT, errors and deadlines."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from cluster.config.run_config import RunConfig, load_config
from cluster.fleet import learner_group
from cluster.fleet.learner_group import LearnerGroup
from cluster.fleet.ray_session import ray_session
from envs.errors import ConfigError, LearnerError, LearnerLostError, NonFiniteError
from tests.cluster.fleet.obedient_rank import Rank

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, ray_session(RunConfig()):
        patch.setattr(learner_group, "LearnerActor", Rank)
        patch.setattr(learner_group, "_CLOSE_S", 1.0)
        yield


Steps = list[dict[str, float]]


async def follow(
    steps: Steps, overrides: list[str], *orders: str, timeout_s: float | None = None
) -> None:
    """Collect in `steps` the metrics of an SFT on a table of `orders`.

    `timeout_s` is the learner's deadline once it has started: a start takes long under load.
    """
    learner = LearnerGroup(load_config("catalog", overrides), "tiny")
    async with asyncio.timeout(120):
        try:
            await learner.start()
            if timeout_s is not None:
                learner._config = load_config("catalog", [f"cluster.learner_timeout_s={timeout_s}"])
            async for step in learner.sft(pa.table({"order": orders}), 7, Path("checkpoints")):
                steps.append(step)
        finally:
            await learner.close()


async def test_the_metrics_of_every_step_are_those_of_rank_0() -> None:
    steps: Steps = []
    await follow(steps, ["learner.ranks=2"], "well", "well", "well")
    assert steps == [{"step": float(step), "seed": 7.0} for step in range(3)]


async def test_a_resumed_run_replaces_the_earlier_export(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "of the earlier end").touch()
    learner = LearnerGroup(load_config("catalog"), "tiny")
    try:
        await learner.export_model(model)
    finally:
        await learner.close()
    assert [path.name for path in model.iterdir()] == ["new"]


@pytest.mark.parametrize("ranks", [1, 2])
async def test_ranks_are_asked_for_the_run_directory_and_nothing_stays(
    tmp_path: Path, ranks: int
) -> None:
    learner = LearnerGroup(load_config("catalog", [f"learner.ranks={ranks}"]), str(tmp_path))
    try:
        if ranks == 1:
            await learner.check_folder(tmp_path)
        else:
            with pytest.raises(ConfigError, match="rank 1 on far does not see it"):
                await learner.check_folder(tmp_path)
    finally:
        await learner.close()
    assert list(tmp_path.iterdir()) == []


async def test_an_error_of_a_rank_keeps_its_type() -> None:
    steps: Steps = []
    with pytest.raises(NonFiniteError, match="step 1 is nan"):
        await follow(steps, [], "well", "fail")
    assert len(steps) == 1


async def test_the_deadline_is_for_one_step_and_a_busy_rank_does_not_delay_the_close() -> None:
    steps: Steps = []
    with pytest.raises(LearnerLostError, match="learner sft: no answer within 10 s"):
        await follow(steps, [], "well", "well", "hang", timeout_s=10.0)
    assert len(steps) == 2


async def test_the_death_of_a_rank_is_told_from_an_error() -> None:
    with pytest.raises(LearnerLostError, match="learner sft: the actor died"):
        await follow([], [], "well", "die")
    with pytest.raises(LearnerError, match="closed by peer") as found:
        await follow([], [], "peer died")
    assert type(found.value) is LearnerError, "no rank is dead"


async def test_the_death_of_an_idle_rank_is_noticed() -> None:
    learner = LearnerGroup(load_config("catalog", ["learner.ranks=2"]), "tiny")
    try:
        await learner.start()
        watching = asyncio.create_task(learner.watch())
        await asyncio.wait({watching}, timeout=3.0)
        assert not watching.done()
        ray.kill(learner._ranks[1])
        with pytest.raises(LearnerLostError, match="the actor died"):
            async with asyncio.timeout(30):
                await watching
    finally:
        await learner.close()


async def test_a_rank_that_is_stopped_is_lost_within_ten_seconds_idle_or_busy() -> None:
    """It answers no call, and neither does a rank that computes: its process is looked at."""
    group = LearnerGroup(RunConfig(), "model")
    await group.start()
    ((_, pid),) = group._places
    watching = asyncio.create_task(group.watch())
    done, _ = await asyncio.wait({watching}, timeout=2.5)
    assert not done, "nothing is wrong yet"
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(LearnerLostError, match=rf"rank 0 \(process {pid} .*is stopped"):
        async with asyncio.timeout(20):
            await watching
    assert time.monotonic() - began < 10
    assert "its process is stopped" in await group.describe()
    began = time.monotonic()
    await group.close()
    assert time.monotonic() - began < 3, "a lost group is not asked to close"
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() - began < 10
        await asyncio.sleep(0.05)
