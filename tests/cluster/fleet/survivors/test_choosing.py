"""Which of the actors that an earlier driver left are taken over, and which are ended."""

from typing import Any

import pytest

from cluster.config.run_config import load_config
from cluster.fleet.placement.worker_place import WorkerPlace
from cluster.fleet.rollout_worker import WorkerSpec
from cluster.fleet.survivors import lasting, taking_over
from cluster.fleet.survivors.lasting import Lasting, Survivor
from cluster.fleet.survivors.taking_over import TakenOver, take_over
from envs.config import ToolServerConfig
from rollout.config import EngineConfig, ModelConfig
from rollout.engines.engine_spec import EngineSpec

KEY = "run-unit"
PLACE = WorkerPlace(cpus=1.0, gpus=0.0)
SPEC = WorkerSpec(
    engine=EngineSpec(model_path="tiny", model=ModelConfig(), engine=EngineConfig(), seed=0),
    tools=ToolServerConfig(),
)


class Left:
    """The actors that there are, and those that were ended."""

    def __init__(self) -> None:
        self.actors: list[Survivor] = []
        self.ended: list[str] = []


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Left:
    found = Left()
    monkeypatch.setattr(taking_over, "survivors_of", lambda key: list(found.actors))
    for module in (taking_over, lasting):
        monkeypatch.setattr(module.ray, "kill", found.ended.append)
    return found


def taken(keep_s: float, wanted: int, key: str = KEY) -> TakenOver:
    config = load_config("catalog", [f"cluster.keep_workers_s={keep_s}"])
    return take_over(key, config, {"default": SPEC}, {"default": PLACE}, {"default": wanted})


def actor(lasts: Lasting, name: Any) -> Survivor:
    return Survivor(kind=lasts.kind, digest=lasts.digest, actor=name)


def test_those_that_fit_are_taken_and_one_too_many_is_ended(left: Left) -> None:
    how = taken(300, 2)
    fits = [actor(how.groups["default"], name) for name in ("a", "b", "c")]
    other = Survivor(kind="worker-default", digest="of another recipe", actor="d")
    gone = Survivor(kind="worker-large", digest=fits[0].digest, actor="e")
    left.actors = [*fits, other, gone, actor(how.tools, "tools")]
    found = taken(300, 2)
    assert [found.take("default"), found.take("default")] == fits[:2]
    assert found.take("default") is None
    assert sorted(left.ended) == ["c", "d", "e"]


def test_a_recipe_that_keeps_none_ends_what_an_earlier_one_kept(left: Left) -> None:
    left.actors = [actor(taken(300, 2).groups["default"], "a")]
    found = taken(0, 2)
    assert found.take("default") is None and not found.groups["default"].options()
    assert left.ended == ["a"]


def test_a_run_without_a_key_leaves_others_alone(left: Left) -> None:
    left.actors = [actor(taken(300, 2).groups["default"], "a")]
    assert taken(300, 2, key="").take("default") is None
    assert left.ended == []
