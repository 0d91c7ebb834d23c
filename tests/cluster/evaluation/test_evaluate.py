"""Evaluations that are killed and go on, and the report that they leave."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import RunConfig, to_toml
from cluster.evaluation.evaluate import (
    check_evaluation,
    missing_episodes,
    run_episodes,
)
from cluster.evaluation.report_files import report_on
from cluster.progress import Progress
from envs.errors import ConfigError
from envs.tasks import Task
from rollout.episode import Episode, Lease
from rollout.evaluation.reader import read_rows
from rollout.store.ledger_state import DropReason, State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind
from rollout.store.run_reader import RunReader

SAMPLES = 4


def make_config(path: Path, **sections: Any) -> RunConfig:
    tree = {
        "run": {"dir": str(path), "name": "unit", "seed": 5},
        "eval": {"samples": SAMPLES, "temperature": 1.0},
    }
    return RunConfig.model_validate(tree | sections)


def new_run(config: RunConfig) -> RunDirectory:
    info = RunInfo(run="unit", kind=RunKind.EVAL, seed=5, created_at=0.0)
    return RunDirectory.create(config.path, to_toml(config), info)


def reopened(path: Path, config: RunConfig, tasks: list[Task]) -> RunDirectory:
    return check_evaluation(config, path, tasks).open(Progress(quiet=True))


@dataclass
class Evaluation:
    """An evaluation of six tasks of two depths; every second sample is right."""

    config: RunConfig
    tasks: list[Task]
    fleet: Any

    async def run_in(self, run: RunDirectory) -> None:
        pool = self.fleet.pool()
        pool.resize(1)
        await run_episodes(self.config, pool, run, self.tasks)
        await pool.close()

    async def kill_after(self, run: RunDirectory, episodes: int) -> None:
        """Play until so many episodes are stored, and leave the run as a SIGKILL would."""
        canned, stored = self.fleet.play, 0

        def until_then(lease: Lease, *rest: Any) -> Episode:
            nonlocal stored
            stored += 1
            if stored > episodes:
                self.fleet.gate.clear()
                raise asyncio.CancelledError
            return canned(lease, *rest)

        self.fleet.play = until_then
        playing = asyncio.create_task(self.run_in(run))
        while stored <= episodes:
            await asyncio.sleep(0)
        playing.cancel()
        await asyncio.wait([playing])
        run.close()
        self.fleet.play = canned
        self.fleet.gate.set()


@pytest.fixture
def evaluation(tmp_path: Path, fleet: Any, numbered: Any) -> Evaluation:
    tasks = [
        replace(task, tags={"depth": str(1 + i % 2)})
        for i, task in enumerate(numbered.tasks("heldout", 0, 6))
    ]
    play_one = fleet.play

    def tagged(lease: Lease, task: Task, *rest: Any) -> Episode:
        return replace(play_one(lease, task, *rest), tags=task.tags)

    fleet.play = tagged
    return Evaluation(make_config(tmp_path), tasks, fleet)


@pytest.mark.parametrize("episodes", [0, 9, 23])
async def test_a_killed_evaluation_goes_on_and_repeats_nothing(
    evaluation: Evaluation, episodes: int
) -> None:
    path = evaluation.config.path
    await evaluation.kill_after(new_run(evaluation.config), episodes)
    before = {row.episode for row in RunReader(path).episodes()}
    assert len(before) == episodes
    seeds = {lease.episode: lease.seed for _, lease in evaluation.fleet.started}
    evaluation.fleet.started.clear()

    with reopened(path, evaluation.config, evaluation.tasks) as run:
        assert missing_episodes(evaluation.config, run.ledger, evaluation.tasks) == 24 - episodes
        await evaluation.run_in(run)
        assert missing_episodes(evaluation.config, run.ledger, evaluation.tasks) == 0
        assert run.ledger.audit().violations == ()
        assert run.ledger.audit().reasons == {DropReason.EVALUATED: 24}
    again = [lease for _, lease in evaluation.fleet.started]
    assert len(again) == 24 - episodes
    assert before.isdisjoint(lease.episode for lease in again)
    assert all(seeds.get(lease.episode, lease.seed) == lease.seed for lease in again)
    assert Counter(row.task for row in read_rows(path)) == dict.fromkeys(
        [task.id for task in evaluation.tasks], SAMPLES
    )

    report = report_on(path)
    assert (report.summary.tasks, report.summary.counted, report.summary.accuracy) == (6, 24, 0.5)


async def test_a_stored_episode_that_the_ledger_missed_is_not_played_again(
    evaluation: Evaluation,
) -> None:
    """Killed between storing an episode and its ledger line, and between the line and the last."""
    config, path = evaluation.config, evaluation.config.path
    run = new_run(config)
    await evaluation.kill_after(run, 8)
    ledger = path / "ledger" / "events.jsonl"
    lines = [
        line
        for line in ledger.read_text().splitlines()
        if '"dropped"' not in line and '-03","attempt"' not in line
    ]
    ledger.write_text("\n".join(lines) + "\n")
    stored = {row.episode for row in RunReader(path).episodes()}
    assert any(episode.endswith("-03") for episode in stored)

    evaluation.fleet.started.clear()
    with reopened(path, config, evaluation.tasks) as run:
        await evaluation.run_in(run)
        assert {entry.state for entry in run.ledger.entries.values()} == {State.DROPPED}
    assert stored.isdisjoint(lease.episode for _, lease in evaluation.fleet.started)
    assert len(evaluation.fleet.started) == 16


async def test_what_the_world_failed_is_told_and_not_counted(
    evaluation: Evaluation, failing_first: Any
) -> None:
    evaluation.fleet.play = failing_first
    with new_run(evaluation.config) as run:
        await evaluation.run_in(run)
    assert len(RunReader(run.path).episodes()) == 36
    rows = read_rows(run.path)
    assert len(rows) == 24 and all(row.counts for row in rows), "the last attempt is what counts"


async def test_the_report_is_left_in_the_run_directory(evaluation: Evaluation) -> None:
    with new_run(evaluation.config) as run:
        await evaluation.run_in(run)
        report_on(run.path)
    told = json.loads((run.path / "eval.json").read_text())
    assert (told["version"], told["accuracy"], told["samples"]) == (1, 0.5, SAMPLES)
    assert (told["mode"], told["temperature"], told["seed"]) == ("trial", 1.0, 5)
    depths = [row for row in told["rows"] if row["by"] == "depth"]
    assert [(row["value"], row["tasks"], row["samples"]) for row in depths] == [
        ("1", 3, 12),
        ("2", 3, 12),
    ]
    # two right of four: pass@2 = 1 - C(2,2)/C(4,2)
    assert depths[0]["pass_at_k"]["2"]["value"] == pytest.approx(5 / 6)
    text = (run.path / "eval.md").read_text()
    figures = "0.500 [0.241, 0.759] | 0.833 [0.431, 0.971] | 1.000 [0.476, 1.000]"
    assert f"| all | 6 | 24 | {figures} | 0.000 [0.000, 0.524] |" in text
    assert "±" not in text
    assert (told["accuracy_low"], told["accuracy_high"]) == pytest.approx((0.241, 0.759), abs=1e-3)
    assert told["stderr"] == 0.0 and told["rows"][0]["pass_at_k"]["4"]["method"] == "score"
    assert "| depth 2 | 3 | 12 |" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval": {"samples": 8, "temperature": 1.0}}, "eval.samples was 4, is 8"),
        ({"episode": {"mode": "direct"}}, "episode.mode was 'trial', is 'direct'"),
        ({"run": {"name": "unit", "seed": 6}}, "run.seed was 5, is 6"),
        ({"tools": {"call_timeout_s": 9.0}}, "tools.call_timeout_s was 5.0, is 9.0: what tools"),
        ({"tools": {"isolation": {"profile": "files"}}}, "tools.isolation.profile was 'compute'"),
    ],
)
async def test_other_settings_are_refused(
    evaluation: Evaluation, change: dict[str, Any], message: str
) -> None:
    path = evaluation.config.path
    await evaluation.kill_after(new_run(evaluation.config), 3)
    with pytest.raises(ConfigError, match=message):
        reopened(path, make_config(path.parent, **change), evaluation.tasks)
    elsewhere = {
        "run": {"name": "other", "seed": 5},
        "rollouts": {"workers": 1},
        "tools": {"max_sessions": 300, "record": True, "isolation": {"required": "seccomp"}},
    }
    reopened(path, make_config(path, **elsewhere), evaluation.tasks).close()


async def test_episodes_of_other_tasks_are_refused(evaluation: Evaluation) -> None:
    path = evaluation.config.path
    await evaluation.kill_after(new_run(evaluation.config), 23)
    with pytest.raises(ConfigError, match="not of this evaluation"):
        check_evaluation(evaluation.config, path, evaluation.tasks[:3])
