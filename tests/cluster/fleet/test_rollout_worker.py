"""A worker on a node that lacks the model."""

from pathlib import Path
from typing import cast

import pytest

from cluster.fleet.balanced_tools import BalancedTools
from cluster.fleet.rollout_worker import RolloutWorker, WorkerSpec
from envs.config import ToolServerConfig
from envs.errors import MissingError
from rollout.chat.template import ChatTemplate
from rollout.config import EngineConfig, ModelConfig
from rollout.engine import Engine
from rollout.engines.engine_spec import EngineSpec


def no_engine(template: ChatTemplate, spec: EngineSpec) -> Engine:
    raise AssertionError("the model is looked for first")


async def test_a_node_without_the_model_is_named(tmp_path: Path) -> None:
    engine = EngineSpec(
        model_path=str(tmp_path / "model"),
        model=ModelConfig(),
        engine=EngineConfig(),
        seed=0,
        device="cpu",
        transport="shm",
        deterministic=False,
    )
    spec = WorkerSpec(engine=engine, tools=ToolServerConfig())
    worker = RolloutWorker("w", spec, cast(BalancedTools, None), no_engine)
    with pytest.raises(MissingError, match=rf"the model {tmp_path}/model on node .*same path"):
        await worker.start()
