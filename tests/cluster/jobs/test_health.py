"""What `trialrun status` says of a job's workers, of a stall, and of steps that train nothing."""

from pathlib import Path

import pytest

from cluster.cli.run_rows import run_row
from cluster.config.run_config import load_config
from cluster.jobs.directories import status_of
from cluster.jobs.health import Health, WorkerHealth, read_health, write_health
from cluster.lifecycle.opening import new_run
from rollout.store.run_layout import RunKind, RunLayout

HEALTH = Health(
    at=1.0,
    doing="waits for the groups (step 3)",
    stalled="No worker is healthy: worker-2 (on node n) has been starting for 700 s.",
    wanted={"default": 1, "big": 0},
    workers=[
        WorkerHealth(
            name="worker-2",
            group="default",
            state="starting",
            for_s=700.4,
            node="n",
            version=0,
            episodes=0,
        )
    ],
    quarantined=["node m is in quarantine for 60 s more"],
)


def test_a_running_job_shows_its_workers_and_what_stalls_it(tmp_path: Path) -> None:
    config = load_config("catalog", [f"run.dir={tmp_path}"])
    with new_run(config.path, config, RunKind.TRAIN) as run:
        assert read_health(run.layout) is None and "workers" not in run_row(status_of(run.path))
        write_health(run.layout, HEALTH)
        row = run_row(status_of(run.path))
        assert row["stalled"] == HEALTH.stalled
        assert row["doing"] == "waits for the groups (step 3)"
        assert row["workers"] == ["worker-2 starting for 700 s, 0 episodes"]
        assert row["wanted_workers"] == {"default": 1, "big": 0}
        assert row["quarantined"] == ["node m is in quarantine for 60 s more"]
        assert "failing" not in row and "trained_nothing" not in row
    assert "stalled" not in run_row(status_of(config.path)), "nothing runs any more"


def test_steps_that_made_no_update_are_said_of_a_dead_run_too(tmp_path: Path) -> None:
    config = load_config("catalog", [f"run.dir={tmp_path}"])
    with new_run(config.path, config, RunKind.TRAIN) as run:
        run.record_metrics(1, {"optimizer_steps": 2.0})
        assert "trained_nothing" not in run_row(status_of(run.path))
        run.record_metrics(2, {"optimizer_steps": 0.0, "dropped_zero_variance": 8.0})
        run.record_metrics(3, {"optimizer_steps": 0.0, "dropped_no_reward": 5.0})
    assert run_row(status_of(config.path))["trained_nothing"] == (
        "2 of 3 steps made no update, the last of them step 3 (dropped: 5 no_reward)"
    )


@pytest.mark.parametrize("text", ["", "{", '{"at": "long ago"}', "[]"])
def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Path, text: str) -> None:
    layout = RunLayout(tmp_path)
    layout.health.write_text(text)
    assert read_health(layout) is None
