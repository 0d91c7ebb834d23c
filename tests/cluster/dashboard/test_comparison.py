"""Comparisons, studies and recipes that change."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.episode_schema import to_batch
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind
from tests.cluster.dashboard.conftest import Dashboard, Open
from tests.cluster.dashboard.sample_run import CONFIG, episode_of, lease_of
from tests.waiting import expect_within

TASKS = 6


def write_evaluation(path: Path, right: set[int], created_at: float = 1.0) -> None:
    """Write an evaluation of six tasks with one sample each, of which those in `right` succeed."""
    info = RunInfo(run=path.name, kind=RunKind.EVAL, seed=1, created_at=created_at)
    with RunDirectory.create(path, CONFIG, info) as run:
        for number in range(TASKS):
            lease = lease_of(number, 1)
            score = float(number in right)
            run.ledger.lease([lease])
            run.append(
                to_batch(
                    [
                        episode_of(
                            lease,
                            reward=score,
                            reward_parts={"answer": score},
                            question=f"question {number}",
                            tags={"depth": str(number % 2)},
                            split="heldout",
                        )
                    ]
                )
            )
            run.ledger.finish(lease)


@pytest.fixture
def compared(tmp_path: Path, open_dashboard: Open) -> Iterator[Dashboard]:
    """Two evaluations: the second wins tasks 2 and 3 and loses task 0."""
    write_evaluation(tmp_path / "runs" / "before", {0, 1})
    write_evaluation(tmp_path / "runs" / "after", {1, 2, 3})
    found = open_dashboard(tmp_path / "runs")
    for run in found.get("/runs")["runs"]:
        address = f"/runs/{run['id']}/health"
        found.get(f"/runs/{run['id']}/episodes")
        expect_within(20, lambda address=address: found.get(address)["coverage"]["complete"])
    yield found


def test_a_comparison_names_the_tasks_won_and_lost(compared: Dashboard) -> None:
    ids = {run["name"]: run["id"] for run in compared.get("/runs")["runs"]}
    found = compared.get("/compare", run=[ids["before"], ids["after"]])
    assert found["shared"] == TASKS
    assert (found["won"], found["lost"], found["tied"]) == (2, 1, 3)
    flips = {flip["question"]: flip["verdict"] for flip in found["flips"]}
    assert flips == {"question 0": "lost", "question 2": "won", "question 3": "won"}
    won = next(flip for flip in found["flips"] if flip["question"] == "question 2")
    for run, name in (("before", won["first_episode"]), ("after", won["second_episode"])):
        assert compared.get(f"/runs/{ids[run]}/episode", id=name)["question"]["text"] == (
            "question 2"
        )
    total = next(row for row in found["rows"] if row["by"] == "all")
    assert total["difference"] == pytest.approx(1 / TASKS)
    assert total["low"] <= total["difference"] <= total["high"]
    assert [side["score"]["value"] for side in found["sides"]] == pytest.approx([2 / 6, 3 / 6])
    by = compared.get("/compare", run=[ids["before"], ids["after"]], by="depth")
    assert {row["value"] for row in by["rows"] if row["by"] == "depth"} == {"0", "1"}
    assert compared.get("/compare", 422, run=[ids["before"], ids["before"]])["fix"]


def test_rows_of_an_evaluation_lead_to_their_episodes(compared: Dashboard) -> None:
    ids = {run["name"]: run["id"] for run in compared.get("/runs")["runs"]}
    rows = compared.get(f"/runs/{ids['after']}/evaluation", by="depth")["rows"]
    for row in [row for row in rows if row["filter"]]:
        total = compared.get(f"/runs/{ids['after']}/filter", filter=row["filter"])["total"]
        assert total == row["samples"]


def test_a_study_is_a_table_whose_cells_open_their_runs(
    tmp_path: Path, open_dashboard: Open
) -> None:
    root = tmp_path / "runs" / "study"
    for seed, right in ((1, {0, 1}), (2, {0, 1, 2})):
        cell = root / f"seed-{seed}" / "evals" / "grpo" / "unseen" / "greedy"
        write_evaluation(cell / "run", right, created_at=float(seed))
        result = {"digest": "x", "accuracy": len(right) / TASKS, "tasks": TASKS,
                  "trial_calls_per_episode": 1.0}  # fmt: skip
        (cell / "result.json").write_text(json.dumps(result))
    (root / "seed-1" / "evals" / "sft" / "unseen" / "greedy").mkdir(parents=True)
    (root / "study.json").write_text("{}")
    found = open_dashboard(tmp_path / "runs")
    listed = found.get("/runs")
    (id_,) = listed["studies"]
    study = found.get(f"/studies/{id_}")
    (cell,) = study["cells"]
    assert (cell["arm"], cell["setting"], cell["seeds"]) == ("grpo", "unseen, greedy", 2)
    assert cell["accuracy"] == pytest.approx(2.5 / TASKS)
    assert cell["low"] < cell["accuracy"] < cell["high"]
    assert {*cell["runs"]} == {run["id"] for run in listed["runs"]}
    assert study["unfinished"] == ["seed-1/evals/sft/unseen/greedy"]
    found.get(f"/runs/{cell['run']}/episodes")


def test_a_recipe_that_changed_is_compared_by_key(tmp_path: Path, open_dashboard: Open) -> None:
    info = RunInfo(run="sample", kind=RunKind.TRAIN, seed=1, created_at=1.0)
    with RunDirectory.create(
        tmp_path / "runs" / "sample", "[run]\nsteps = 2\nx = 1\n", info
    ) as run:
        run.reconfigure("[run]\nsteps = 9\nx = 1\n[new]\nkey = [1]\n", 2)
    found = open_dashboard(tmp_path / "runs")
    answer = found.get(f"{found.run}/config")
    assert [(a["first_step"], a["last_step"]) for a in answer["attempts"]] == [(1, 2), (3, None)]
    changes = {change["key"]: change["values"] for change in answer["changes"]}
    assert changes == {"run.steps": ["2", "9"], "new.key": [None, "[1]"]}
