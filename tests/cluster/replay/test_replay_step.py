"""What a replayed step is compared with, and what prevents it; the replay itself is in e2e."""

import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from cluster.config.run_config import RunConfig, to_toml
from cluster.replay.replay_step import (
    nearest_checkpoint,
    recipe_of,
    recorded_step,
    refuse_other_versions,
)
from envs.errors import ConfigError, MissingError
from learner.outputs.digest import (
    PUSHED_METRIC,
    combined_digest,
    push_metrics,
    recorded_digests,
    tensor_digests,
    with_weight_digests,
)
from learner.outputs.publish import SharedMemoryPublisher
from learner.report import StepReport
from rollout.episode_schema import to_batch
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from rollout.store.run_reader import RunReader
from rollout.weights.manifest import WeightLayout, WeightManifest
from tests.cluster.conftest import leases_of

WEIGHTS = {"embed": torch.ones(3, 2), "norm": torch.zeros((), dtype=torch.bfloat16)}
ORDER = ["g000001-01", "g000001-00"]


def report_of(
    weights: dict[str, torch.Tensor], *, whole: bool = True, **metrics: float
) -> StepReport:
    annotations = pa.table({"episode": ORDER, "advantage": [0.5, -0.5], "entropies": [[1.0], []]})
    values = {"loss": 0.25, "trained_reward": float("nan"), "seconds": 3.0, "loss_tokens": 8.0}
    values |= metrics
    report = StepReport(values, annotations, [])
    return with_weight_digests(report, tensor_digests(weights.items())) if whole else report


@pytest.fixture
def run(tmp_path: Path, fleet: Any, numbered: Any) -> Path:
    """One trained step of two episodes; the second was tried twice."""
    task = numbered.tasks("train", 0, 1)[0]
    leases = leases_of(task, 2, number=1)
    path, report = tmp_path / "unit", report_of(WEIGHTS)
    with RunDirectory.create(
        path, to_toml(RunConfig()), RunInfo(run="unit", seed=0, created_at=0.0)
    ) as directory:
        directory.ledger.lease(leases)
        leases[1] = directory.ledger.re_lease("g000001-01", "lost")
        for lease in leases:
            directory.append(to_batch([fleet.play(lease, task, 0, "w")]))
            directory.ledger.finish(lease)
        directory.ledger.train(1, ORDER)
        assert report.annotations is not None
        directory.annotate(1, report.annotations)
        directory.record_metrics(1, report.metrics)
    return path


def test_digests_follow_every_bit_and_nothing_else() -> None:
    one, same = tensor_digests(WEIGHTS.items()), tensor_digests(WEIGHTS.items())
    nudged = WEIGHTS | {"embed": torch.ones(3, 2)}
    nudged["embed"][2, 1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    other = tensor_digests(nudged.items())
    assert one == same
    assert {name for name in one if one[name] != other[name]} == {"embed"}
    assert combined_digest(one) != combined_digest(other)
    assert combined_digest(one) == json.loads(json.dumps(combined_digest(one))) < 2**53


def test_the_episodes_come_in_the_order_in_which_they_were_trained(run: Path) -> None:
    recorded = recorded_step(RunReader(run), 1)
    assert recorded.table["episode"].to_pylist() == ORDER
    assert recorded.table["attempt"].to_pylist() == [1, 0]
    assert recorded_digests(recorded.annotations) == tensor_digests(WEIGHTS.items())


def test_the_same_step_has_no_difference_whatever_time_it_takes(run: Path) -> None:
    recorded = recorded_step(RunReader(run), 1)
    assert list(recorded.differences(report_of(WEIGHTS, seconds=9.0))) == []


def pushed(folder: Path, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """The metric of a real push of `weights`."""
    layout = WeightLayout.of(
        [
            (name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.nbytes)
            for name, tensor in weights.items()
        ]
    )
    publisher = SharedMemoryPublisher(folder, layout)
    try:
        return push_metrics(publisher.publish(1, weights.items()))
    finally:
        publisher.close()


def test_the_pushed_digest_follows_every_bit_of_what_was_pushed(tmp_path: Path) -> None:
    nudged = WEIGHTS | {"norm": torch.tensor(2.0**-126, dtype=torch.bfloat16)}
    one, same, other = (pushed(tmp_path, weights) for weights in (WEIGHTS, WEIGHTS, nudged))
    assert one == same != other
    assert one == json.loads(json.dumps(one))
    no_hash = WeightManifest(
        version=1, layout=WeightLayout.of([]), transport="cuda_ipc", path="", checksum=""
    )
    assert push_metrics(no_hash) == {}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("push", [True, False])
def test_what_the_step_recorded_is_compared_and_said(run: Path, whole: bool, push: bool) -> None:
    full = recorded_step(RunReader(run), 1)
    annotations, metrics = full.annotations, dict(full.metrics)
    if not whole:
        annotations = annotations.replace_schema_metadata(None)
        del metrics["weights_digest"]
    if push:
        metrics[PUSHED_METRIC] = 17.0
    recorded = replace(full, annotations=annotations, metrics=metrics)
    assert (recorded.has_whole_digests, recorded.has_pushed_digest) == (whole, push)
    for lora, name in ((True, "pushed LoRA factors"), (False, "pushed weights")):
        said = recorded.compared_weights(lora=lora)
        assert ("every tensor" in said) == whole
        assert (name in said) == push
        assert said.startswith("none") == (not whole and not push)
    report = report_of(WEIGHTS, whole=whole)
    if push:
        report = replace(report, metrics=report.metrics | {PUSHED_METRIC: 17.0})
    assert list(recorded.differences(report)) == []
    if push:
        moved = replace(report, metrics=report.metrics | {PUSHED_METRIC: 18.0})
        found = [difference.where for difference in recorded.differences(moved)]
        assert found == [f"metric {PUSHED_METRIC}"]


@pytest.mark.parametrize(
    ("weights", "metrics", "where"),
    [
        (
            WEIGHTS | {"norm": torch.ones((), dtype=torch.bfloat16)},
            {},
            ["weights of norm", "metric weights_digest"],
        ),
        (WEIGHTS, {"loss": 0.25000000000000006}, ["metric loss"]),
        (WEIGHTS, {"trained_reward": 0.0}, ["metric trained_reward"]),
        (WEIGHTS, {"start_entropy": 1.0}, ["metric start_entropy"]),
    ],
)
def test_the_first_difference_of_every_kind_is_named(
    run: Path, weights: dict[str, torch.Tensor], metrics: dict[str, float], where: list[str]
) -> None:
    recorded = recorded_step(RunReader(run), 1)
    found = list(recorded.differences(report_of(weights, whole=True, **metrics)))
    assert [difference.where for difference in found] == where


def test_a_step_of_an_older_version_is_compared_under_todays_names(run: Path) -> None:
    """What that version measured over something else, or did not measure, is left out."""
    full = recorded_step(RunReader(run), 1)
    metrics = dict(full.metrics) | {"entropy": 0.5, "clip_fraction": 0.1, "reward_mean": 0.75}
    del metrics["loss_tokens"]
    recorded = replace(full, metrics=metrics)
    new: Any = {"start_entropy": 0.5, "clip_fraction": 0.4, "trained_reward": 0.5}
    assert list(recorded.differences(report_of(WEIGHTS, **new))) == []
    found = list(recorded.differences(report_of(WEIGHTS, **new | {"start_entropy": 0.6})))
    assert [difference.where for difference in found] == ["metric start_entropy"]


def test_what_the_learner_computed_per_episode_is_compared(run: Path) -> None:
    recorded = recorded_step(RunReader(run), 1)
    report = report_of(WEIGHTS)
    assert report.annotations is not None
    column = pa.array([[1.0], [2.0]])
    changed = report.annotations.set_column(2, "entropies", column)
    found = list(recorded.differences(replace(report, annotations=changed)))
    assert [difference.where for difference in found] == ["entropies of g000001-00"]


def test_the_nearest_checkpoint_before_the_step_is_the_base(run: Path) -> None:
    reader = RunReader(run)
    assert nearest_checkpoint(reader, 1) is None
    for name, complete in (("000002", True), ("000004", True), ("000005", False)):
        (reader.layout.checkpoints / name).mkdir()
        if complete:
            (reader.layout.checkpoints / name / "complete").touch()
    found = [nearest_checkpoint(reader, step) for step in (2, 3, 4, 9)]
    assert [path and path.name for path in found] == [None, "000002", "000002", "000004"]
    with pytest.raises(MissingError, match="count from 1"):
        nearest_checkpoint(reader, 0)


def test_steps_of_two_recipes_are_not_run_again_as_one(run: Path) -> None:
    reader = RunReader(run)
    with RunDirectory.open(run) as directory:
        directory.reconfigure("[run]", 4)
    assert recipe_of(reader, 5, 6).read_text() == "[run]"
    assert recipe_of(reader, 1, 4).read_text() == to_toml(RunConfig())
    with pytest.raises(ConfigError, match="another recipe between the steps 3 and 5"):
        recipe_of(reader, 3, 5)


def test_an_error_names_what_is_missing(run: Path) -> None:
    reader = RunReader(run)
    with pytest.raises(MissingError, match="steps 1 to 1, not 7"):
        recorded_step(reader, 7)
    for folder in (reader.layout.episodes, reader.layout.index):
        shutil.rmtree(folder)
        folder.mkdir()
    with pytest.raises(MissingError, match="2 are missing, such as g000001-01"):
        recorded_step(RunReader(run), 1)


def test_other_versions_of_what_computes_are_refused() -> None:
    refuse_other_versions({"ray": "0.0.1", "torch": version("torch")})
    with pytest.raises(ConfigError, match=r"expected torch 1\.0\.0, which the run was started"):
        refuse_other_versions({"torch": "1.0.0"})
