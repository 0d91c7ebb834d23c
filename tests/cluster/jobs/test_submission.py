"""What a job consists of, and how jobs that were submitted with `ray job submit` are recognised."""

import shlex
from pathlib import Path

import pytest

from cluster.config.places import with_absolute_paths
from cluster.config.run_config import load_config
from cluster.jobs.submission import (
    RECIPE,
    command_of,
    program_of,
    steering,
    training,
    write_upload,
)


def test_a_training_job_resumes_by_itself_and_uploads_the_recipe_alone(tmp_path: Path) -> None:
    config = with_absolute_paths(load_config("catalog", ["run.name=first"]), {})
    job = training(config, ["/a venv/bin/trialrun"], {"env_vars": {"A": "1"}, "pip": ["x"]})
    assert shlex.split(job.entrypoint) == ["/a venv/bin/trialrun", "train", RECIPE, "--requeue"]
    assert job.runtime_env == {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60", "A": "1"},
        "pip": ["x"],
    }
    assert job.metadata["trialrun_dir"] == str(config.path)
    write_upload(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RECIPE]
    assert load_config(str(tmp_path / RECIPE)) == config


@pytest.mark.parametrize(
    ("entrypoint", "program", "command"),
    [
        ("trialrun train catalog --requeue", ["trialrun"], "train"),
        ("'/a venv/bin/trialrun' sft file", ["/a venv/bin/trialrun"], "sft"),
        (
            "python -m cluster.cli.main train x run.name=eval",
            ["python", "-m", "cluster.cli.main"],
            "train",
        ),
        ("uv run trialrun eval catalog", ["uv", "run", "trialrun"], "eval"),
        ("trialrun scale runs/first 2", [], ""),
        ("python train.py train", [], ""),
        ("echo 'train", [], ""),
        ("", [], ""),
    ],
)
def test_a_job_that_makes_a_run_is_known_by_its_entry_point(
    entrypoint: str, program: list[str], command: str
) -> None:
    assert (program_of(entrypoint), command_of(entrypoint)) == (program, command)


def test_a_run_that_only_the_cluster_sees_is_scaled_by_the_program_of_its_job() -> None:
    job = steering("scale", "/srv/my runs/first", ["3"], "/venv/bin/trialrun train recipe.toml")
    assert job.entrypoint == "/venv/bin/trialrun scale '/srv/my runs/first' 3"
