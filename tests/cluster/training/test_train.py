"""What a resumed run takes over from the one before, without starting anything."""

from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.lifecycle.opening import new_run
from cluster.training.train import _remembered_workers, run_train
from rollout.store.control import ControlEvent, ScaleRequest
from rollout.store.run_layout import RunKind, RunLayout


def recipe(folder: Path, *overrides: str) -> RunConfig:
    places = (f"run.dir={folder}", f"run.models_dir={folder / 'models'}")
    return load_config("catalog", [*places, "run.steps=2", "rollouts.workers=2", *overrides])


def test_a_resumed_run_keeps_its_scale_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    with new_run(config.path, config, RunKind.TRAIN) as run:
        assert _remembered_workers(config) == 2
        request = ScaleRequest(workers=5)
        event = ControlEvent(at=1.0, actor="ada", request=request, request_id="1", workers=5)
        run.record_control(event)
    assert _remembered_workers(config) == 5
    assert _remembered_workers(recipe(tmp_path, "rollouts.workers=3")) == 3


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
