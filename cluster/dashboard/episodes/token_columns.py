"""Values per token of an episode: what was sampled, and what the learner made of it.

Columns, one value per token: token_id, phase (number), loss_mask, version and staleness (null where
nothing was sampled), logprob (the sampler's), trainer_logprob, mismatch (trainer's minus
sampler's), entropy (nats) and advantage. The last four are null where the learner did not score.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.dashboard.episodes.numbers import PHASES
from cluster.dashboard.episodes.stored import Stored
from cluster.dashboard.models.detail import Overlay
from rollout.store.regular_files import plain
from rollout.store.run_layout import RunLayout

_SAMPLED = (1, 2, 3)
_TORN = (pa.ArrowException, OSError, KeyError, ValueError)
_SHOWN = {
    "advantage": ("Advantage", "reward"),
    "logprob": ("Logprob of the sampler", "nats"),
    "trainer_logprob": ("Logprob of the learner", "nats"),
    "mismatch": ("Learner minus sampler", "nats"),
    "entropy": ("Entropy", "nats"),
    "loss_mask": ("Loss mask", ""),
    "version": ("Policy version", "versions"),
    "staleness": ("Staleness", "versions"),
}
"""Title and unit of overlays."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What the learner recorded of an episode: a row of `annotations/`, or why there is none."""

    row: Mapping[str, Any] | None
    reason: str


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """The columns, and for each that is empty the reason."""

    table: pa.Table
    reasons: Mapping[str, str]

    def overlays(self) -> list[Overlay]:
        """Describe the columns that can be laid over the text."""
        return [_overlay(name, self.table[name], self.reasons.get(name, "")) for name in _SHOWN]

    def arrow(self) -> bytes:
        """Return the columns as an Arrow stream; its metadata holds the reasons and phases."""
        metadata = {"reasons": json.dumps(dict(self.reasons)), "phases": json.dumps(PHASES)}
        table = self.table.replace_schema_metadata(metadata)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return sink.getvalue().to_pybytes()


def learned_of(layout: RunLayout, one: Stored) -> Learned:
    """Return what the learner recorded at the step that took the episode."""
    row = one.row
    if row.step is None:
        return Learned(None, _not_taken(row.state, row.reason))
    path = layout.annotations(row.step)
    try:
        with pa.memory_map(plain(path)) as file:
            table = pa.ipc.open_file(file).read_all()
            table.validate(full=True)
            places = np.flatnonzero(table["episode"].to_numpy(zero_copy_only=False) == row.episode)
            if not len(places):
                return Learned(None, f"step {row.step} has no record of the episode")
            found = table.slice(int(places[0]), 1).to_pylist()[0]
    except FileNotFoundError:
        return Learned(None, f"the run has no annotations of step {row.step}")
    except _TORN as error:
        return Learned(None, f"the annotations of step {row.step} are damaged: {str(error)[:100]}")
    return Learned(found, "")


def token_columns(one: Stored, learned: Learned) -> TokenColumns:
    """Return the columns of an episode."""
    batch = one.batch
    ids, phases, logprobs = (_numbers(batch, name) for name in ("token_ids", "phases", "logprobs"))
    size = len(ids)
    sampled = np.isin(phases, _SAMPLED)
    versions = _versions(one.record(("spans",))["spans"], size)
    seen = sampled & (versions >= 0)
    step = one.row.step
    stale = np.maximum((step or 0) - 1 - versions, 0)
    trainer, entropy, advantage = _learned(learned, one, phases, size)
    logprobs = logprobs.astype(np.float32)
    with np.errstate(invalid="ignore"):
        gap = trainer - logprobs
    table = pa.table(
        {
            "token_id": pa.array(ids, pa.int32()),
            "phase": pa.array(phases, pa.int8()),
            "loss_mask": pa.array(_numbers(batch, "loss_mask").astype(bool)),
            "version": pa.array(versions, pa.int32(), mask=~seen),
            "staleness": pa.array(stale, pa.int32(), mask=~seen | (step is None)),
            "logprob": _real(logprobs),
            "trainer_logprob": _real(trainer),
            "mismatch": _real(gap),
            "entropy": _real(entropy),
            "advantage": _real(advantage),
        }
    )
    return TokenColumns(table, _reasons(table, one, learned))


def _learned(
    learned: Learned, one: Stored, phases: npt.NDArray[Any], size: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the learner's logprobs, entropies and advantages per token; NaN where it has none."""
    trainer, entropy, advantage = (np.full(size, np.nan, np.float32) for _ in range(3))
    row = learned.row
    if row is None:
        return trainer, entropy, advantage
    places = np.array(row["loss_positions"] or [], np.int64)
    inside = places < size
    for column, name in ((trainer, "trainer_logprobs"), (entropy, "entropies")):
        values = np.array(row[name] or [], np.float32)
        if len(values) == len(places):
            column[places[inside]] = values[inside]
    whole, trial = one.row.advantage, one.row.trial_advantage
    if whole is not None:
        advantage[places[inside]] = whole
        if trial is not None:  # credit by phase: trials have an advantage of their own
            before = np.isin(phases, (1, 2))
            advantage[before & ~np.isnan(advantage)] = trial
    return trainer, entropy, advantage


def _versions(spans: list[dict[str, int]], size: int) -> npt.NDArray[np.int32]:
    """Return the version of each token; -1 before the first span."""
    versions = np.full(size, -1, np.int32)
    for span in sorted(spans, key=lambda span: span["start"]):
        versions[max(span["start"], 0) :] = span["version"]
    return versions


def _reasons(table: pa.Table, one: Stored, learned: Learned) -> dict[str, str]:
    """Return why columns have no value at all."""
    reasons: dict[str, str] = {}
    for name in _SHOWN:
        if table[name].null_count < table.num_rows:
            continue
        reasons[name] = _reason(name, one, learned)
    return reasons


def _reason(name: str, one: Stored, learned: Learned) -> str:
    row = one.row
    if name == "logprob":
        return (
            f"no engine gave logprobs: the turns are of {row.source!r}"
            if row.source != "policy"
            else "nothing was sampled"
        )
    if name in ("version", "staleness") and row.oldest_version < 0:
        return "nothing was sampled"
    if name == "staleness":
        return "no step has taken the episode"
    if learned.row is None:
        return learned.reason
    dropped = learned.row["dropped"]
    if dropped:
        return f"the learner of step {row.step} left the episode out: {dropped}"
    return f"the learner of step {row.step} recorded none"


def _not_taken(state: str, reason: str) -> str:
    if state in ("stored", "finished", "leased"):
        return "no step has taken the episode yet"
    said = {"retried": "the attempt failed and was retried", "dropped": "dropped before a learner"}
    return f"{said.get(state, state)}{f': {reason}' if reason else ''}"


def consumed_at(one: Stored, learned: Learned) -> str:
    """Say in words when the learner took the episode, or why not."""
    row = one.row
    if row.step is None:
        return _not_taken(row.state, row.reason)
    if row.state == "dropped":
        return f"step {row.step} left it out: {row.reason}"
    late = row.staleness
    if not late:
        return f"step {row.step}, with the weights that it was sampled with"
    return f"step {row.step}, {late} version{'s' if late > 1 else ''} late"


def _numbers(batch: pa.RecordBatch, name: str) -> npt.NDArray[Any]:
    column = cast(pa.ListArray, batch.column(name))
    return column.flatten().to_numpy(zero_copy_only=False)


def _real(values: npt.NDArray[np.float32]) -> pa.Array:
    return pa.array(values, pa.float32(), mask=~np.isfinite(values))


def _overlay(name: str, column: pa.ChunkedArray, reason: str) -> Overlay:
    title, unit = _SHOWN[name]
    present = column.drop_null()
    low = high = None
    if len(present) and name != "loss_mask":
        values = present.to_numpy()
        low, high = (float(v) for v in np.percentile(values, (2, 98)))
    return Overlay(
        name=name,
        title=title,
        unit=unit,
        available=len(present) > 0,
        reason=reason,
        tokens=len(present),
        low=low,
        high=high,
    )
