"""Sinks of metrics: the vendors' own clients write, and their own readers read it back.

TensorBoard is installed with the test tools. Weights & Biases and MLflow are not: their tests run
where they are installed, and CONTRIBUTING.md has the command that does it.
"""

import importlib.util
import logging
import math
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import RunConfig, checked_config, load_config
from cluster.sinks.choosing import check_sinks, open_sinks
from cluster.sinks.sink import Sink, SinkRun, SinkThread, opened
from envs.errors import ConfigError
from envs.late_imports import import_late
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind, RunLayout
from tests.waiting import expect_within

NAN = math.nan


def needs(module: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"needs {module}: pip install 'trialrun[{module}]'")


def config_of(path: Path, *values: str) -> RunConfig:
    return load_config("catalog", [f"run.dir={path}", "run.name=first", *values])


def written(config: RunConfig) -> RunLayout:
    """Record two steps, as training does, and the second again, as a resumed run does."""
    layout = RunLayout(config.path)
    if not layout.run_json.exists():
        info = RunInfo(run=config.run.name, kind=RunKind.TRAIN, seed=0, created_at=1.7e9)
        RunDirectory.create(config.path, "", info).close()
    with open_sinks(config, layout) as sinks:
        sinks.record(1, {"loss": 0.5, "success": NAN, "steps": 2})
    with open_sinks(config, layout) as sinks:
        sinks.record(2, {"loss": 0.4, "success": 0.25})
    return layout


@needs("tensorboard")
def test_tensorboard_reads_what_was_written_for_it(tmp_path: Path) -> None:
    read = import_late("tensorboard.backend.event_processing.event_accumulator")
    layout = written(config_of(tmp_path, 'metrics.sinks=["tensorboard"]'))
    found = read.EventAccumulator(str(layout.root / "tensorboard"))
    found.Reload()
    assert sorted(found.Tags()["scalars"]) == ["loss", "steps", "success"]
    assert [(row.step, round(row.value, 6)) for row in found.Scalars("loss")] == [
        (1, 0.5),
        (2, 0.4),
    ]
    assert [(row.step, row.value) for row in found.Scalars("success")] == [(2, 0.25)]


@needs("wandb")
def test_wandb_writes_its_offline_files(tmp_path: Path) -> None:
    layout = written(config_of(tmp_path, 'metrics.sinks=["wandb"]', 'metrics.wandb.mode="offline"'))
    runs = sorted((layout.root / "wandb").glob("offline-run-*/run-*.wandb"))
    ids = {path.stem.removeprefix("run-") for path in runs}
    assert len(runs) == 2 and len(ids) == 1, "a resumed run is the same run there"
    # Its own process may still be writing after `finish` has returned.
    expect_within(20, lambda: all(b"loss" in path.read_bytes() for path in runs))


@needs("wandb")
def test_wandb_without_a_key_is_refused_before_it_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ConfigError, match=r"there is no API key: .* metrics.wandb.mode"):
        check_sinks(config_of(tmp_path, 'metrics.sinks=["wandb"]'))


@needs("mlflow")
@needs("alembic")
def test_mlflow_has_one_run_for_a_resumed_one(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    written(config_of(tmp_path, 'metrics.sinks=["mlflow"]', f'metrics.mlflow.tracking_uri="{uri}"'))
    client = import_late("mlflow").MlflowClient(uri)
    experiment = client.get_experiment_by_name("trialrun")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(row.step, row.value) for row in history] == [(1, 0.5), (2, 0.4)]
    assert run.data.params["run.name"] == "first"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    values = [f'metrics.sinks=["{name}"]', 'metrics.mlflow.tracking_uri="http://x"']
    with pytest.raises(ConfigError, match=rf"pip install 'trialrun\[{name}\]'"):
        check_sinks(config_of(tmp_path, *values))


def test_a_recipe_that_cannot_work_is_refused(tmp_path: Path) -> None:
    for tree, said in (
        ({"metrics": {"sinks": ["mlflow"]}}, "metrics.mlflow.tracking_uri is empty"),
        ({"metrics": {"sinks": ["tensorbord"]}}, "metrics.sinks"),
    ):
        with pytest.raises(ConfigError, match=said):
            checked_config(tree, "test")  # type: ignore[arg-type]


class _Slow:
    """A sink that takes nothing until it is let."""

    def __init__(self, gate: threading.Event, taken: list[int]) -> None:
        self._gate, self._taken = gate, taken

    def record(self, step: int, values: Mapping[str, float]) -> None:
        assert self._gate.wait(20)
        self._taken.append(step)

    def close(self) -> None:
        self._taken.append(-1)


def run_of(path: Path) -> SinkRun:
    return SinkRun(name="first", id="first-1", path=path, config={})


def test_a_slow_sink_holds_nothing_up_and_gets_everything(tmp_path: Path) -> None:
    gate, taken = threading.Event(), list[int]()
    slow = SinkThread("slow", lambda run: _Slow(gate, taken), run_of(tmp_path))
    with opened([slow]) as sinks:
        for step in range(100):
            sinks.record(step, {"loss": 1.0})
        assert taken == []
        gate.set()
    assert taken == [*range(100), -1]


def test_a_sink_that_fails_is_named_once_and_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[int] = []

    class Failing:
        def record(self, step: int, values: Mapping[str, float]) -> None:
            raise RuntimeError("quota is used up")

        def close(self) -> None:
            raise AssertionError("it is not used any more")

    def refused(run: SinkRun) -> Any:
        raise ValueError("no such project")

    gate = threading.Event()
    gate.set()

    def good(run: SinkRun) -> Sink:
        return _Slow(gate, taken)

    threads = [
        SinkThread(key, make, run_of(tmp_path))
        for key, make in (("a", lambda run: Failing()), ("b", refused), ("c", good))
    ]
    with caplog.at_level(logging.WARNING, "trialrun"), opened(threads) as sinks:
        for step in range(3):
            sinks.record(step, {"loss": 1.0})
    assert taken == [0, 1, 2, -1]
    said = sorted(record.getMessage() for record in caplog.records)
    assert said == [
        "no metrics go to a any more: quota is used up; metrics/ has all",
        "no metrics go to b any more: no such project; metrics/ has all",
    ]
