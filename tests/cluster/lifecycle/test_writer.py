"""Which process wrote to a run last, and through which job it can be reached."""

import json
import os
from pathlib import Path

import pytest

from cluster.config.places import JOB_MARK
from cluster.config.run_config import load_config
from cluster.lifecycle.opening import Resume, open_run
from cluster.lifecycle.writer import read_writer, this_writer
from cluster.progress import QUIET
from rollout.store.run_layout import RunKind, RunLayout


def test_every_opening_names_its_process_and_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("catalog", [f"run.dir={tmp_path}"])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    open_run(RunKind.TRAIN, config.path, config, Resume.NO, QUIET).close()
    layout = RunLayout(config.path)
    first = read_writer(layout)
    assert first is not None
    assert (first.pid, first.submission_id, first.ray_address) == (os.getpid(), "", "")
    monkeypatch.setenv(JOB_MARK, json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    open_run(RunKind.TRAIN, config.path, config, Resume.NO, QUIET).close()
    then = read_writer(layout)
    assert then is not None
    assert (then.submission_id, then.ray_address) == ("raysubmit_1", "10.0.0.1:6379")


@pytest.mark.parametrize("mark", ["", "[]", '{"metadata": {}}'])
def test_a_job_of_an_unknown_kind_has_no_id(mark: str) -> None:
    assert this_writer({JOB_MARK: mark}).submission_id == ""


def test_an_older_or_damaged_directory_has_no_writer(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    assert read_writer(layout) is None
    layout.writer.write_text("{")
    assert read_writer(layout) is None
