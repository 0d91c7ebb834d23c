"""Chosen episodes as a collection: a run directory that `trialrun sft --from` trains on."""

import json
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from cluster.dashboard.episodes.exports import batches_matching
from cluster.dashboard.filters.compiling import Compiled
from cluster.dashboard.index.library import KnownRun
from cluster.dashboard.index.run_index import RunIndex
from cluster.dashboard.models.analysis import SftSet
from cluster.dashboard.problems import ApiError
from rollout.episode import ANSWER_PART, Lease, RolloutKind, is_correct
from rollout.evaluation.teacher_filter import FilterConfig
from rollout.store.journal import replace_file
from rollout.store.ledger_state import DropReason
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind

_SAMPLED = (1, 2, 3)
_LEASE = ("run", "episode", "group", "group_number", "task", "sample_index", "attempt", "seed")


def write_sft_set(
    run: KnownRun, index: RunIndex, condition: Compiled, name: str, *, only_correct: bool
) -> SftSet:
    """Write the matching episodes beside the run. Raises ApiError where there are none."""
    target = run.layout.root.parent / name
    if target.exists():
        detail = f"{target} is there already"
        raise ApiError(409, "exists", detail, "choose another name")
    newest = {
        episode: attempt
        for episode, attempt in index.rows(
            f"SELECT e.episode, max(e.attempt) FROM {condition.tables} WHERE {condition.sql} "
            "GROUP BY e.episode",
            condition.parameters,
        )
    }
    left_out: Counter[str] = Counter()
    kept = _kept(batches_matching(index, condition), newest, left_out, only_correct=only_correct)
    first = next(kept, None)
    if first is None:
        said = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none match"
        raise ApiError(409, "empty", f"no episode is left to train on ({said})", "widen the filter")
    info = run.facts.info()
    described = RunInfo(
        run=name,
        kind=RunKind.COLLECT,
        seed=info.seed,
        created_at=time.time(),
        command=f"trialrun dashboard: SFT set of {run.name}",
        versions=info.versions,
    )
    ids: list[str] = []
    with RunDirectory.create(target, run.facts.config_text(), described) as directory:
        ids += _store(directory, first)
        for table in kept:
            ids += _store(directory, table)
        replace_file(directory.layout.selection, _selection(ids, left_out))
    command = f"trialrun sft RECIPE --from {shlex.quote(str(target))}"
    return SftSet(path=str(target), episodes=len(ids), left_out=dict(left_out), command=command)


def _kept(
    tables: Iterator[pa.Table],
    newest: dict[str, int],
    left_out: Counter[str],
    *,
    only_correct: bool,
) -> Iterator[pa.Table]:
    """Yield what can be trained on, and count the rest by reason."""
    for table in tables:
        rows = table.select(["episode", "attempt", "reward", "reward_parts", "loss_mask"])
        reasons = [_reason(row, newest, only_correct=only_correct) for row in rows.to_pylist()]
        left_out.update(reason for reason in reasons if reason)
        chosen = table.filter(pa.array([not reason for reason in reasons]))
        if chosen.num_rows:
            yield chosen


def _reason(row: dict[str, Any], newest: dict[str, int], *, only_correct: bool) -> str:
    """Return why an episode is no demonstration; empty if it is one."""
    if row["reward"] is None:
        return "without a reward"
    if row["attempt"] != newest[row["episode"]]:
        return "older attempts"
    if not any(row["loss_mask"]):
        return "without a sampled token"
    if only_correct and not is_correct(dict(row["reward_parts"]).get(ANSWER_PART, 0.0)):
        return "wrong answers"
    return ""


def _store(directory: RunDirectory, table: pa.Table) -> Sequence[str]:
    """Store episodes and enter them in the ledger, as a collection does."""
    groups: dict[str, list[Lease]] = {}
    for row in table.select(list(_LEASE)).to_pylist():
        # One group per episode: a set is chosen episode by episode, and a group is leased whole.
        group = f"{row['group']} {row['episode']}"
        lease = Lease(kind=RolloutKind.COLLECT, **{**row, "group": group})
        groups[group] = [lease]
    for leases in groups.values():
        directory.ledger.lease(leases)
    for batch in table.combine_chunks().to_batches():
        directory.append(batch)
    ids = [lease.episode for leases in groups.values() for lease in leases]
    for leases in groups.values():
        directory.ledger.finish(leases[0])
    directory.ledger.drop(ids, DropReason.COLLECTED)
    return ids


def _selection(ids: Sequence[str], left_out: Counter[str]) -> bytes:
    """Return `selection.json`, which says that all of them were chosen."""
    content = {
        "rules": FilterConfig().model_dump(mode="json"),
        "report": {"episodes": len(ids), "selected": len(ids), "left_out": dict(left_out)},
        "selected": list(ids),
        "dropped": {},
    }
    return json.dumps(content, indent=1).encode()
