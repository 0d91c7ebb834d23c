"""Rows that older versions recorded: read under today's names, and plotted."""

import json
import shutil
from pathlib import Path

import pytest

from cluster.metrics import CURVES, METRICS
from cluster.older_metrics import (
    OLDER,
    OLDER_CURVES,
    is_older,
    read_metrics,
    training_series,
)
from rollout.store.run_reader import MetricsRow, RunReader

OLD_RUN = Path(__file__).parent / "lifecycle" / "old_runs" / "train"
TRAINED = {
    **{"optimizer_steps": 4.0, "loss": 0.5, "grad_norm": 0.25, "entropy": 0.75, "tokens": 100.0},
    **{"mismatch_kl": 0.0, "dlogp_mean": 0.1, "dlogp_p99": 0.2, "dlogp_max": 0.3, "lr": 1e-5},
    **{"clip_fraction": 0.04, "reference_kl": 0.5, "trial_yield": 0.06, "tokens_per_s": 7.0},
    **{"answer_mean": 0.9, "reward_mean": 0.8, "trial_calls": 2.0, "informative_trials": 1.0},
    **{"trial_advantage_size": 0.0, "advantage_size": 0.7, "sampled_tokens": 9.0},
}


def test_the_same_number_is_read_under_its_new_name() -> None:
    found = read_metrics(TRAINED)
    assert {name: found[name] for name in ("start_entropy", "mismatch", "loss_tokens")} == {
        "start_entropy": 0.75,
        "mismatch": 0.0,
        "loss_tokens": 100.0,
    }
    assert (found["abs_dlogp_mean"], found["abs_dlogp_p99"], found["abs_dlogp_max"]) == (
        *(0.1, 0.2),
        0.3,
    )
    assert (found["loss"], found["sequence_tokens_per_s"]) == (0.5, 7.0)


def test_a_number_over_something_else_does_not_pass_for_todays() -> None:
    found = read_metrics(TRAINED)
    changed = {"success", "reward", "trial_calls", "distinct_trials", "clip_fraction"}
    changed |= {"reference_kl", "trial_yield", "sampled_tokens", "trained_success"}
    assert not changed & found.keys()
    assert (found["answer_mean"], found["given_trial_calls"]) == (0.9, 2.0)
    assert (found["weighted_reference_kl"], found["minibatch_clip_fraction"]) == (0.5, 0.04)
    assert "trial_advantage_size" not in found, "no phase credit: nothing was measured"
    assert found.keys() <= METRICS.keys() | OLDER.keys()


def test_zeros_of_a_step_that_trained_on_nothing_are_not_read() -> None:
    idle = dict.fromkeys(TRAINED, 0.0) | {"answer_mean": 1.0, "lr": 1e-5}
    found = read_metrics(idle)
    assert found["answer_mean"] == 1.0
    unmeasured = {"loss", "grad_norm", "start_entropy", "mismatch", "abs_dlogp_max", "lr"}
    assert not (unmeasured | {"advantage_size", "weighted_reference_kl"}) & found.keys()
    assert found["loss_tokens"] == 0.0


def test_a_row_of_today_is_read_as_it_is() -> None:
    row = {name: 0.0 for name in METRICS}
    assert not is_older(row)
    assert read_metrics(row) == row
    assert is_older(TRAINED)
    assert all(len(OLDER[name].heading) <= 34 for name in OLDER_CURVES), "a panel is no wider"


def test_the_plot_of_a_run_that_a_newer_version_resumed_joins_what_is_the_same() -> None:
    new = {"loss_tokens": 9.0, "start_entropy": 0.5, "success": 0.95, "mismatch_fresh": 1e-4}
    rows = [MetricsRow(1, TRAINED), MetricsRow(2, new)]
    series = training_series(rows)
    assert series["start_entropy"] == {1: 0.75, 2: 0.5}
    assert series["answer_mean"] == {1: 0.9}
    assert series["success"] == {2: 0.95}
    assert series["mismatch"] == {1: 0.0}
    assert list(series) == [name for name in (*CURVES, *OLDER_CURVES) if name in series]


def test_an_old_run_directory_has_curves_without_false_zeros(tmp_path: Path) -> None:
    """Its only step trained on nothing."""
    shutil.copytree(OLD_RUN, tmp_path / "old")
    series = training_series(RunReader(tmp_path / "old").metrics())
    assert series["answer_mean"] == {1: 0.0}
    assert series["reward_mean"][1] == pytest.approx(-0.1)
    assert not {"start_entropy", "grad_norm", "loss", "mismatch"} & series.keys()
    recorded = json.loads((OLD_RUN / "metrics" / "metrics.jsonl").read_text())
    assert read_metrics(recorded).keys() <= METRICS.keys() | OLDER.keys() | {"step"}
