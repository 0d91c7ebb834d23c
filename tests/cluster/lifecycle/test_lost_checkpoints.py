"""A resume that would silently start again at step 1 is refused."""

from pathlib import Path

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.lifecycle.opening import Resume, check_run, new_run
from envs.errors import StoreError
from rollout.store.run_layout import RunKind, RunLayout


def trained(folder: Path, kind: RunKind, steps: int, *overrides: str) -> RunConfig:
    config = load_config("catalog", [f"run.dir={folder}", *overrides])
    with new_run(config.path, config, kind) as run:
        for step in range(1, steps + 1):
            run.record_metrics(step, {"loss": 0.5})
    return config


@pytest.mark.parametrize(
    ("kind", "key"),
    [(RunKind.TRAIN, "run.checkpoint_every"), (RunKind.SFT, "sft.checkpoint_every")],
)
def test_a_run_that_has_lost_its_checkpoints_is_not_resumed(
    tmp_path: Path, kind: RunKind, key: str
) -> None:
    config = trained(tmp_path, kind, 5, f"{key}=2")
    with pytest.raises(StoreError, match="expected a checkpoint of step 4") as refusal:
        check_run(kind, config.path, config, Resume.IF_PRESENT)
    assert "5 steps were trained" in str(refusal.value) and "run.name" in str(refusal.value)
    checkpoint = RunLayout(config.path).checkpoints / "000004"
    checkpoint.mkdir()
    (checkpoint / "complete").touch()
    assert check_run(kind, config.path, config, Resume.IF_PRESENT).resumes


def test_a_run_that_was_stopped_before_its_first_checkpoint_is_resumed(tmp_path: Path) -> None:
    config = trained(tmp_path, RunKind.TRAIN, 3, "run.checkpoint_every=4")
    assert check_run(RunKind.TRAIN, config.path, config, Resume.REQUIRED).resumes


def test_the_recipe_that_the_run_had_decides_which_checkpoints_were_due(tmp_path: Path) -> None:
    config = trained(tmp_path, RunKind.TRAIN, 3, "run.checkpoint_every=4")
    often = load_config("catalog", [f"run.dir={tmp_path}", "run.checkpoint_every=1"])
    assert check_run(RunKind.TRAIN, config.path, often, Resume.REQUIRED).resumes


def test_a_complete_sft_needs_no_checkpoint_and_a_training_run_that_goes_on_does(
    tmp_path: Path,
) -> None:
    sft = trained(tmp_path / "sft", RunKind.SFT, 5, "sft.checkpoint_every=2")
    RunLayout(sft.path).model.mkdir()
    assert check_run(RunKind.SFT, sft.path, sft, Resume.IF_PRESENT).resumes
    rl = trained(tmp_path / "rl", RunKind.TRAIN, 5, "run.checkpoint_every=5")
    RunLayout(rl.path).model.mkdir()
    more = rl.model_copy(update={"run": rl.run.model_copy(update={"steps": 9})})
    with pytest.raises(StoreError, match="expected a checkpoint of step 5"):
        check_run(RunKind.TRAIN, rl.path, more, Resume.REQUIRED)
