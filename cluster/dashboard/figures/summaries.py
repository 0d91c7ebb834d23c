"""A run in a row: kind, state, step, figures of the last step, last error."""

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise

from cluster.dashboard.figures.logs import last_error
from cluster.dashboard.index.library import KnownRun
from cluster.dashboard.index.run_facts import RunFacts, Step
from cluster.dashboard.index.tail import size_of
from cluster.dashboard.models.runs import RunState, RunSummary
from envs.errors import StoreError
from rollout.store.run_layout import RunKind, RunLayout
from rollout.store.shared_files import read_bytes

_SPARK = 60


def summary_of(run: KnownRun) -> RunSummary:
    """Return the row of a run, also of one that cannot be read."""
    facts, layout = run.facts, run.layout
    try:
        info = facts.info()
    except (StoreError, OSError) as error:
        return _unreadable(run, str(error))
    kind, steps = facts.kind(), facts.steps()
    last = steps[-1].values if steps else {}
    rewards = [step.values.get("reward") for step in steps]
    wanted = facts.setting("run", "steps") if kind is RunKind.TRAIN else None
    success = last.get("success")
    if kind is RunKind.EVAL:
        success = _accuracy(layout)
    workers = last.get("workers")
    return RunSummary(
        id=run.id,
        name=run.name,
        kind=str(kind),
        state=state_of(facts, kind, steps, wanted),
        paused=facts.is_paused(),
        path=str(layout.root),
        created_at=info.created_at if math.isfinite(info.created_at) else None,
        command=info.command[:500],
        step=steps[-1].step if steps else 0,
        steps=wanted if isinstance(wanted, int) else None,
        episodes=run.index.episodes if run.index and run.index.loaded.is_set() else None,
        success=success,
        reward=last.get("reward"),
        reward_spark=thinned(rewards, _SPARK),
        workers=int(workers) if workers is not None else None,
        last_error=last_error(layout),
        updated_at=facts.updated_at(),
        problems=len(facts.damage) + (len(run.index.damage) if run.index else 0),
    )


def state_of(facts: RunFacts, kind: RunKind, steps: Sequence[Step], wanted: object) -> RunState:
    """Return whether the run goes on, and how it ended."""
    layout = facts.layout
    if facts.is_written():
        return "running"
    done = {
        RunKind.TRAIN: layout.model.exists() and bool(steps) and steps[-1].step == wanted,
        RunKind.SFT: layout.model.exists(),
        RunKind.EVAL: layout.eval_json.exists(),
        RunKind.COLLECT: layout.selection.exists() or layout.older_selection.exists(),
        RunKind.TEACHER: layout.selection.exists() or layout.older_selection.exists(),
    }
    if done.get(kind, False):
        return "finished"
    # Cheaper than `run_kind.is_blank`, which reads the ledger.
    recorded = steps or size_of(layout.ledger) or layout.segments()
    return "stopped" if recorded else "failed start"


def thinned(values: Sequence[float | None], most: int) -> list[float | None]:
    """Return at most `most` values, each the mean of its stretch; None where all are missing."""
    if len(values) <= most:
        return list(values)
    edges = [round(index * len(values) / most) for index in range(most + 1)]
    found: list[float | None] = []
    for start, end in pairwise(edges):
        present = [value for value in values[start:end] if value is not None]
        found.append(sum(present) / len(present) if present else None)
    return found


def _accuracy(layout: RunLayout) -> float | None:
    try:
        found = json.loads(read_bytes(layout.eval_json)).get("accuracy")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return float(found) if isinstance(found, int | float) else None


def _unreadable(run: KnownRun, problem: str) -> RunSummary:
    return RunSummary(
        id=run.id,
        name=run.name,
        kind="unknown",
        state="unreadable",
        paused=False,
        path=str(run.layout.root),
        created_at=None,
        command="",
        step=0,
        steps=None,
        episodes=None,
        success=None,
        reward=None,
        reward_spark=[],
        workers=None,
        last_error=re.sub(r"\s+", " ", problem)[:500],
        updated_at=run.facts.updated_at(),
        problems=1,
    )
