"""Run directories that were written before runs named their kind still open, list and resume.

`old_runs` holds the smallest of each kind, with the catalog as environment: a training run that was
killed in step 2, a complete evaluation and a complete collection.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.config.environments import make_environment
from cluster.config.run_config import RunConfig, load_config
from cluster.evaluation.evaluate import check_evaluation, missing_episodes
from cluster.evaluation.report_files import report_on
from cluster.lifecycle.opening import Resume, check_run
from cluster.progress import QUIET
from cluster.scheduling.rollouts import Rollouts
from cluster.scheduling.task_sources import eval_tasks, training_tasks
from cluster.teachers.selection_file import read_selection
from cluster.training.sft_data import selected_of
from rollout.episode import RolloutKind
from rollout.store.ledger_state import State
from rollout.store.run_layout import RunKind
from rollout.store.run_reader import RunReader

OLD_RUNS = Path(__file__).with_name("old_runs")
KINDS = {"train": RolloutKind.TRAIN, "eval": RolloutKind.EVAL, "collect": RolloutKind.COLLECT}
EPISODES = {"train": 2, "eval": 2, "collect": 6}


def copy_of(kind: str, folder: Path) -> tuple[Path, RunConfig]:
    """Copy an old run into `folder` and return its path and its recipe."""
    path = folder / "old"
    shutil.copytree(OLD_RUNS / kind, path)
    return path, load_config(str(path / "config.toml"), [f'run.dir="{folder}"'])


@pytest.mark.parametrize("kind", KINDS)
def test_it_opens_and_lists_its_episodes(kind: str, tmp_path: Path) -> None:
    path, _ = copy_of(kind, tmp_path)
    reader = RunReader(path)
    assert reader.kind is RunKind(kind)
    rows = reader.episodes()
    assert len(rows) == EPISODES[kind]
    for row in rows:
        lease = reader.episode(row.episode).lease
        number = -1 if kind == "eval" else int(row.group[1:])
        assert (lease.kind, lease.group_number) == (KINDS[kind], number)


async def test_training_resumes_with_the_same_groups(tmp_path: Path, fleet: Any) -> None:
    path, config = copy_of("train", tmp_path)
    opening = check_run(RunKind.TRAIN, path, config, Resume.REQUIRED)
    with opening.open(QUIET) as run:
        left_open = {lease.episode: lease.seed for lease in run.ledger.open_leases()}
        assert list(left_open) == ["g000001-00", "g000001-01"]
        pool = fleet.pool()
        pool.resize(1)
        await pool.wait_healthy(1)
        tasks = training_tasks(config, make_environment(config.env))
        rollouts = Rollouts(pool, tasks, run, config)
        rollouts.start(0)
        (first,) = await rollouts.collect(1)
        assert (first.name, first.planned_step) == ("g000000", 1)
        run.ledger.train(1, first.episodes)
        (second,) = await rollouts.collect(1)
        assert second.name == "g000001"
        entries = [run.ledger.entries[episode] for episode in second.episodes]
        assert {entry.lease.episode: entry.lease.seed for entry in entries} == left_open
        assert {entry.state for entry in entries} == {State.FINISHED}
        await rollouts.close()
        await pool.close()


def test_a_complete_evaluation_lacks_nothing_and_is_reported(tmp_path: Path) -> None:
    path, config = copy_of("eval", tmp_path)
    tasks = eval_tasks(config, make_environment(config.env))
    opening = check_evaluation(config, path, tasks)
    assert opening.resumes
    with opening.open(QUIET) as run:
        assert missing_episodes(config, run.ledger, tasks) == 0
    assert report_on(path).summary.episodes == 2


def test_the_selection_of_a_collection_is_found(tmp_path: Path) -> None:
    path, config = copy_of("collect", tmp_path)
    assert check_run(RunKind.COLLECT, path, config, Resume.REQUIRED).resumes
    selection = read_selection(path)
    assert selection is not None
    assert selected_of(path)["episode"].to_pylist() == list(selection.selected)
