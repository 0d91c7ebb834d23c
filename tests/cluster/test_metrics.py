"""The registry of metrics against what training emits: nothing is missing, nothing is invented."""

import ast
import asyncio
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from cluster.fleet.loop_lag import LoopLag
from cluster.metrics import (
    CURVES,
    METRICS,
    POPULATIONS,
    RL_LINE,
    SFT_LINE,
    Metric,
    dropped_reasons,
    line_of,
)
from cluster.scheduling.groups import Group
from cluster.training.train import step_row
from learner.batch import read_episodes
from learner.config import LearnerConfig
from learner.objective import advantages, selection
from learner.objective.selection import select
from learner.outputs.digest import PUSHED_METRIC, WHOLE_METRIC
from learner.report import Scores, StepReport, step_metrics
from rollout.episode_schema import to_batch
from tests.cluster.conftest import leases_of

ROOT = Path(__file__).parents[2]
PRODUCERS = {
    "learner/report.py": ("step_metrics", "start_metrics", "credit_metrics"),
    "learner/trainer.py": ("sft", "_sft_update", "rl_step"),
    "cluster/training/train.py": ("step_row", "_step"),
    "cluster/training/step_metrics.py": (
        *("played_metrics", "staleness_metrics", "mismatch_by_staleness"),
    ),
}
"""Functions that write metrics, by file."""


def emitted_by(source: str, functions: tuple[str, ...]) -> set[str]:
    """Return the names that `functions` write: keys of dictionaries, assigned keys, and laps."""
    found: set[str] = set()
    wanted = set(functions)
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name in wanted:
            wanted.discard(function.name)
            for node in ast.walk(function):
                found |= {name for key in _keys(node) if (name := _text(key))}
    assert not wanted, f"no such functions: {wanted}; name in PRODUCERS what writes metrics now"
    return found


def _keys(node: ast.AST) -> list[ast.expr | None]:
    if isinstance(node, ast.Dict):
        return list(node.keys)
    if isinstance(node, ast.Assign):
        return [target.slice for target in node.targets if isinstance(target, ast.Subscript)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return list(node.args) if node.func.attr == "lap" else []
    return []


def _text(key: ast.expr | None) -> str:
    return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else ""


@pytest.fixture
def groups(fleet: Any, numbered: Any) -> list[Group]:
    task = numbered.tasks("train", 0, 1)[0]
    leases = leases_of(task, 2)
    return [Group("g000000", to_batch([fleet.play(lease, task, 0, "w") for lease in leases]))]


@pytest.fixture
def emitted(groups: list[Group]) -> set[str]:
    """Every name that training emits: those in the source, and those of a step's functions."""
    names: set[str] = set()
    for path, functions in PRODUCERS.items():
        names |= emitted_by((ROOT / path).read_text(), functions)
    names |= {WHOLE_METRIC, PUSHED_METRIC}
    return names | row_of(groups).keys() | {f"dropped_{reason}" for reason in reasons()}


def row_of(groups: list[Group]) -> dict[str, float]:
    """Return what a step records about two episodes, none of which was trained on."""
    table = pa.Table.from_batches([group.batch for group in groups])
    batch, config = read_episodes(table), LearnerConfig()
    scores = Scores.empty(len(batch.token_ids_N))
    report = StepReport(step_metrics(batch, select(batch, config), scores, 2.0), None, [])
    workers = [SimpleNamespace(state="healthy")]
    pool = SimpleNamespace(workers=workers, losses=0, lag=LoopLag())
    rollouts = SimpleNamespace(take_left=lambda step: [])
    job: Any = SimpleNamespace(pool=pool, rollouts=rollouts)
    return asyncio.run(step_row(job, 1, groups, report))


def reasons() -> set[str]:
    """Return the learner's reasons to leave an episode out: text constants of its modules."""
    return {
        value
        for module in (advantages, selection)
        for name, value in vars(module).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str)
    }


def test_everything_that_training_emits_is_registered(emitted: set[str]) -> None:
    assert sorted(emitted - METRICS.keys()) == []


def test_everything_that_is_registered_is_emitted(emitted: set[str]) -> None:
    assert sorted(METRICS.keys() - emitted) == []


def test_a_new_metric_is_found_in_the_source() -> None:
    source = (
        "def step_row():\n    row = {'a': 1, **other, f'x_{y}': 2}\n    row['b'] = 3\n"
        "    watch.lap('c')\n    return row\ndef other():\n    return {'d': 1}\n"
    )
    assert emitted_by(source, ("step_row",)) == {"a", "b", "c"}
    with pytest.raises(AssertionError, match="no such functions"):
        emitted_by(source, ("gone",))


def test_a_step_counts_the_tokens_that_the_policy_sampled(groups: list[Group]) -> None:
    assert row_of(groups)["sampled_tokens"] == 4  # two of three tokens in each episode


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_a_metric_explains_itself_and_can_be_shown(metric: Metric) -> None:
    assert metric.meaning.endswith(".") and metric.meaning[0] in "`" + metric.meaning[0].upper()
    assert metric.text(0.5) != "-"
    assert metric.text(math.nan) == "-"
    assert metric.over in POPULATIONS and metric.averaging


def test_every_population_is_that_of_a_metric_and_explained() -> None:
    assert {metric.over for metric in METRICS.values()} == POPULATIONS.keys()
    assert all(meaning.endswith(".") for meaning in POPULATIONS.values())


def test_no_name_of_today_is_an_older_name_of_another_metric() -> None:
    before = [metric.before for metric in METRICS.values() if metric.before]
    assert len(before) == len(set(before))
    assert not METRICS.keys() & set(before)


def test_lines_and_curves_are_of_registered_metrics() -> None:
    assert {*RL_LINE, *SFT_LINE, *CURVES} <= METRICS.keys()
    assert line_of({"loss": 0.5, "unknown": 1.0}, SFT_LINE) == "loss 0.500"
    assert METRICS["mismatch"].label == "mismatch"
    assert all(len(METRICS[name].heading) <= 34 for name in CURVES), "a panel is no wider"
    assert not any("_" in metric.heading for metric in METRICS.values()), "legends have words"
    assert not any(metric.name.startswith("kl") for metric in METRICS.values())


def test_reasons_come_commonest_first() -> None:
    row = {"dropped_greedy": 1.0, "dropped_zero_variance": 4.0, "dropped_overlong": 0.0}
    assert dropped_reasons(row) == {"zero_variance": 4, "greedy": 1}
