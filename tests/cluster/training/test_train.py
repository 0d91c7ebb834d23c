"""What a resumed run takes over from the one before, without starting anything."""

from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.fleet.placement.worker_place import workers_wanted
from cluster.lifecycle.inputs import RunInputs
from cluster.lifecycle.opening import new_run
from cluster.progress import QUIET
from cluster.training.train import _remembered_workers, _with_workers, run_train
from rollout.store.control import ControlEvent, ScaleRequest
from rollout.store.run_layout import RunKind, RunLayout


def recipe(folder: Path, *overrides: str) -> RunConfig:
    places = (f"run.dir={folder}", f"run.models_dir={folder / 'models'}")
    return load_config("catalog", [*places, "run.steps=2", "rollouts.workers=2", *overrides])


def test_a_resumed_run_keeps_its_scale_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    groups = ("rollouts.groups.big.workers=1", "rollouts.groups.far.workers=1")
    config = recipe(tmp_path, *groups)
    with new_run(config.path, config, RunKind.TRAIN) as run:
        assert _remembered_workers(config) == {"default": 2, "big": 1, "far": 1}
        for group, workers in (("default", 5), ("big", 0), ("gone", 9)):
            request = ScaleRequest(workers=workers, group=group)
            event = ControlEvent(
                at=1.0, actor="ada", request=request, request_id="1", workers=workers
            )
            run.record_control(event)
    assert _remembered_workers(config) == {"default": 5, "big": 0, "far": 1}
    other = recipe(tmp_path, *groups, "rollouts.workers=3", "rollouts.groups.big.workers=2")
    assert _remembered_workers(other) == {"default": 3, "big": 2, "far": 1}
    environment: Any = None
    inputs = RunInputs(config=config, model=tmp_path, environment=environment)
    resumed = _with_workers(inputs, _remembered_workers(config), QUIET).config
    assert workers_wanted(resumed) == {"default": 5, "big": 0, "far": 1}


@pytest.mark.parametrize("requeue", [True, False])
def test_a_complete_run_ends_at_once(tmp_path: Path, requeue: bool) -> None:
    config = recipe(tmp_path)
    with new_run(config.path, config, RunKind.TRAIN) as run:
        run.record_metrics(2, {"loss": 0.5})
    layout = RunLayout(config.path)
    (layout.checkpoints / "000002").mkdir()
    (layout.checkpoints / "000002" / "complete").touch()
    layout.model.mkdir()
    found = run_train(config, resume=not requeue, requeue=requeue)
    assert found == {"run_dir": str(config.path), "model": str(layout.model), "steps": 2}
