"""Episodes as Arrow record batches: one schema for transfer, storage, checkpoints and SFT data.

The schema's metadata holds the version under `trialrun.episode_version`. `upgrade` converts a
batch of an older version and refuses a newer one. Numbers are stored in the widths of the schema,
so a Python float is read back rounded to float32. `loss_mask` and `oldest_version` are derived from
the other columns; they are stored for readers that never build an `Episode`.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from envs.errors import StoreError
from envs.messages import Message
from envs.tools import AnswerStatus
from rollout.engine import VersionSpan
from rollout.episode import (
    CallRecord,
    Episode,
    Lease,
    Outcome,
    Phase,
    RolloutKind,
    Sampling,
    Timings,
    Turn,
    kind_and_number,
)

EPISODE_VERSION = 3
VERSION_KEY = b"trialrun.episode_version"

_LEASE = (
    *("run", "episode", "kind", "group", "group_number"),
    *("task", "sample_index", "attempt", "seed"),
)
_PLAIN = ("environment", "split", "mode", "outcome", "error", "answer", "question")
_SOURCE = ("source", "worker", "tool_server", "isolation")
_SAMPLING = ("temperature", "top_p", "top_k")
_TIMINGS = ("started_at", "wall_s", "queue_s", "generate_s", "tool_s")
_CALL = ("name", "arguments", "status", "result", "seconds", "cpu_seconds", "purpose")
_TURN = ("phase", "start", "end", "text", "finish_reason", "policy_error")

_TEXT, _INT, _FLOAT = pa.string(), pa.int32(), pa.float32()
_NUMBERS = pa.map_(_TEXT, _FLOAT)
_TEXTS = pa.map_(_TEXT, _TEXT)
SPAN_TYPE = pa.struct({"start": _INT, "version": _INT})
MESSAGE_TYPE = pa.struct({"role": _TEXT, "content": _TEXT})
CALL_TYPE = pa.struct(
    {name: pa.float64() if name in ("seconds", "cpu_seconds") else _TEXT for name in _CALL}
)
TURN_TYPE = pa.struct(
    {
        "phase": pa.int8(),
        "start": _INT,
        "end": _INT,
        "text": _TEXT,
        "finish_reason": _TEXT,
        "policy_error": _TEXT,
        "calls": pa.list_(CALL_TYPE),
    }
)

EPISODE_SCHEMA = pa.schema(
    {
        "run": _TEXT,
        "episode": _TEXT,
        "kind": _TEXT,
        "group": _TEXT,
        "group_number": pa.int64(),
        "task": _TEXT,
        "sample_index": _INT,
        "attempt": _INT,
        "seed": pa.int64(),
        "environment": _TEXT,
        "split": _TEXT,
        "mode": _TEXT,
        "outcome": _TEXT,
        "error": _TEXT,
        "answer": _TEXT,
        "question": _TEXT,
        "reward": _FLOAT,
        "reward_parts": _NUMBERS,
        "score_notes": _TEXTS,
        "tags": _TEXTS,
        "token_ids": pa.list_(_INT),
        "phases": pa.list_(pa.int8()),
        "loss_mask": pa.list_(pa.bool_()),
        "logprobs": pa.list_(_FLOAT),
        "spans": pa.list_(SPAN_TYPE),
        "oldest_version": _INT,
        "turns": pa.list_(TURN_TYPE),
        "messages": pa.list_(MESSAGE_TYPE),
        "temperature": _FLOAT,
        "top_p": _FLOAT,
        "top_k": _INT,
        "sample_seed": pa.int64(),
        "started_at": pa.float64(),
        "wall_s": _FLOAT,
        "queue_s": _FLOAT,
        "generate_s": _FLOAT,
        "tool_s": _FLOAT,
        "source": _TEXT,
        "worker": _TEXT,
        "tool_server": _TEXT,
        "isolation": _TEXT,
        "extra": _NUMBERS,
    },
    metadata={VERSION_KEY: str(EPISODE_VERSION).encode()},
)

_TYPES = {field.name: field.type for field in EPISODE_SCHEMA}
_SAMPLED_P = np.array([phase.sampled for phase in Phase])


def _with_group_numbers(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Bring version 1 to version 2, which stores the kind and number of an episode's group."""
    found = [kind_and_number(group) for group in batch["group"].to_pylist()]
    columns = dict(zip(batch.schema.names, batch.columns, strict=True)) | {
        "kind": pa.array([kind for kind, _ in found], _TYPES["kind"]),
        "group_number": pa.array([number for _, number in found], _TYPES["group_number"]),
    }
    return _in_order(columns, 2)


def _with_score_notes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Bring version 2 to version 3, which stores what scorers say."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    none: list[list[tuple[str, str]]] = [[] for _ in range(batch.num_rows)]
    return _in_order(columns | {"score_notes": pa.array(none, _TEXTS)}, 3)


def _in_order(columns: Mapping[str, pa.Array], version: int) -> pa.RecordBatch:
    """Return a batch of an older version with the columns that it has, in the current order."""
    names = [name for name in EPISODE_SCHEMA.names if name in columns]
    strays = [name for name in columns if name not in names]
    schema = pa.schema(
        [pa.field(name, columns[name].type) for name in (*names, *strays)],
        {VERSION_KEY: str(version).encode()},
    )
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


_MIGRATIONS: dict[int, Callable[[pa.RecordBatch], pa.RecordBatch]] = {
    1: _with_group_numbers,
    2: _with_score_notes,
}
"""From version v to v + 1, by v."""
_SCHEMA_MESSAGE: pa.Buffer = EPISODE_SCHEMA.serialize()
"""How a stream of episodes of the current version starts."""


@dataclass(frozen=True, slots=True)
class Ragged:
    """A list column without copies: row i is `values[offsets[i]:offsets[i + 1]]`."""

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int32]

    def row(self, index: int) -> npt.NDArray[Any]:
        """Return the values of one row, as a view."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]


def ragged(batch: pa.RecordBatch, column: str) -> Ragged:
    """Return a token column of `batch` as flat values and row offsets that start at 0."""
    lists = cast(pa.ListArray, batch.column(column))
    offsets = lists.offsets.to_numpy()
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return Ragged(values, offsets - offsets[0])


def schema_version(schema: pa.Schema) -> int:
    """Return the episode version of `schema`. Raises StoreError if it is missing or too new."""
    text = (schema.metadata or {}).get(VERSION_KEY)
    if text is None:
        raise StoreError(
            f"expected episodes, found an Arrow schema without {VERSION_KEY.decode()}: "
            f"columns {schema.names[:6]}"
        )
    version = int(text) if text.isdigit() and len(text) < 10 else -1
    if version < 0:
        raise StoreError(f"expected a version in {VERSION_KEY.decode()}, found {text[:20]!r}")
    if version > EPISODE_VERSION:
        raise StoreError(
            f"expected episodes of version {EPISODE_VERSION} or older, found version {version}: "
            "a newer trialrun wrote them; read them with that version"
        )
    return version


def upgrade(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return `batch` in the current version. Raises StoreError if it cannot be converted."""
    version = schema_version(batch.schema)
    while version < EPISODE_VERSION:
        batch = _MIGRATIONS[version](batch)
        version += 1
    if not batch.schema.equals(EPISODE_SCHEMA):
        wrong = set(batch.schema.names) ^ set(EPISODE_SCHEMA.names) or {
            name
            for name in batch.schema.names
            if batch.schema.field(name) != EPISODE_SCHEMA.field(name)
        }
        raise StoreError(
            f"expected the columns of EPISODE_SCHEMA version {EPISODE_VERSION}, found differences: "
            f"{sorted(wrong) or batch.schema.names}"
        )
    return batch


def to_wire(batch: pa.RecordBatch) -> pa.Buffer:
    """Return `batch` with its schema in one buffer, for transfer to another process.

    Pickling the record batch itself would pickle each of its buffers, about a hundred per episode.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue()


def from_wire(buffer: pa.Buffer) -> pa.RecordBatch:
    """Return the batch given to `to_wire`, in the current version, without copying `buffer`."""
    # The driver does this for every episode; to decode and compare the schema takes most of it.
    head = buffer.slice(0, _SCHEMA_MESSAGE.size)
    if head.equals(_SCHEMA_MESSAGE):
        return pa.ipc.read_record_batch(buffer.slice(_SCHEMA_MESSAGE.size), EPISODE_SCHEMA)
    with pa.ipc.open_stream(buffer) as stream:
        return upgrade(stream.read_next_batch())


def to_batch(episodes: Sequence[Episode]) -> pa.RecordBatch:
    """Return the episodes in EPISODE_SCHEMA, one row each; numpy builds the token columns."""
    columns: dict[str, pa.Array] = {}
    for attribute, names in (
        ("lease", _LEASE),
        ("", (*_PLAIN, *_SOURCE, "reward")),
        ("sampling", _SAMPLING),
        ("timings", _TIMINGS),
    ):
        rows = [getattr(episode, attribute) for episode in episodes] if attribute else episodes
        for name in names:
            columns[name] = pa.array(list(map(attrgetter(name), rows)), _TYPES[name])
    columns["sample_seed"] = pa.array([e.sampling.seed for e in episodes], pa.int64())
    oldest = [e.spans[0].version if len(e.spans) == 1 else e.oldest_version for e in episodes]
    columns["oldest_version"] = pa.array(oldest, _INT)
    columns |= _token_columns(episodes)
    columns["spans"] = _lists([e.spans for e in episodes], lambda spans: _structs(spans, SPAN_TYPE))
    columns["messages"] = _lists(
        [e.messages for e in episodes], lambda messages: _structs(messages, MESSAGE_TYPE)
    )
    columns["turns"] = _lists([e.turns for e in episodes], _turns)
    for name in ("reward_parts", "score_notes", "tags", "extra"):
        columns[name] = pa.array([list(getattr(e, name).items()) for e in episodes], _TYPES[name])
    return pa.RecordBatch.from_arrays(
        [columns[name] for name in EPISODE_SCHEMA.names], schema=EPISODE_SCHEMA
    )


def from_batch(batch: pa.RecordBatch) -> list[Episode]:
    """Return the episodes of `batch`, of any known version. Raises StoreError, EpisodeError."""
    batch = upgrade(batch)
    tokens = [ragged(batch, name) for name in ("token_ids", "phases", "logprobs")]
    derived = ("token_ids", "phases", "logprobs", "loss_mask")
    rows = batch.select([name for name in batch.schema.names if name not in derived]).to_pylist()
    return [
        _episode(row, *(tuple(column.row(index).tolist()) for column in tokens))
        for index, row in enumerate(rows)
    ]


def _episode(
    row: dict[str, Any],
    token_ids_T: tuple[int, ...],
    phases_T: tuple[int, ...],
    logprobs_T: tuple[float, ...],
) -> Episode:
    return Episode(
        lease=_lease(row),
        **{name: row[name] for name in _PLAIN if name != "outcome"},
        outcome=Outcome(row["outcome"]),
        reward=row["reward"],
        reward_parts=dict(row["reward_parts"]),
        score_notes=dict(row["score_notes"]),
        tags=dict(row["tags"]),
        token_ids_T=token_ids_T,
        phases_T=phases_T,
        logprobs_T=logprobs_T,
        spans=tuple(VersionSpan(**span) for span in row["spans"]),
        turns=tuple(_turn(turn) for turn in row["turns"]),
        messages=tuple(Message(**message) for message in row["messages"]),
        sampling=Sampling(**{name: row[name] for name in _SAMPLING}, seed=row["sample_seed"]),
        timings=Timings(**{name: row[name] for name in _TIMINGS}),
        **{name: row[name] for name in _SOURCE},
        extra=dict(row["extra"]),
    )


def _lease(row: dict[str, Any]) -> Lease:
    values = {name: row[name] for name in _LEASE if name != "kind"}
    return Lease(kind=RolloutKind(row["kind"]), **values)


def _turn(turn: dict[str, Any]) -> Turn:
    phase = Phase(turn.pop("phase"))
    calls = tuple(_call(call) for call in turn.pop("calls"))
    return Turn(phase=phase, calls=calls, **turn)


def _call(call: dict[str, Any]) -> CallRecord:
    return CallRecord(status=AnswerStatus(call.pop("status")), **call)


def _token_columns(episodes: Sequence[Episode]) -> dict[str, pa.Array]:
    offsets = pa.array(_offsets(e.token_ids_T for e in episodes))
    phases = np.frombuffer(b"".join(bytes(e.phases_T) for e in episodes), np.int8)
    values = {
        "token_ids": _packed([e.token_ids_T for e in episodes], "i"),
        "phases": phases,
        "logprobs": _packed([e.logprobs_T for e in episodes], "f"),
        "loss_mask": _SAMPLED_P[phases],
    }
    return {
        name: pa.ListArray.from_arrays(offsets, pa.array(column, from_pandas=False))
        for name, column in values.items()
    }


def _packed(rows: Sequence[Sequence[float]], code: str) -> npt.NDArray[Any]:
    # numpy's own conversion of a tuple boxes and checks every number; struct packs a row in one
    # call, which takes half the time. `join` makes the only copy, and numpy reads it in place.
    return np.frombuffer(b"".join(struct.pack(f"{len(row)}{code}", *row) for row in rows), code)


def _lists(rows: Sequence[Sequence[Any]], build: Callable[[Sequence[Any]], pa.Array]) -> pa.Array:
    return pa.ListArray.from_arrays(
        pa.array(_offsets(rows)), build(list(chain.from_iterable(rows)))
    )


def _offsets(rows: Iterable[Sequence[Any]]) -> npt.NDArray[np.int32]:
    return np.fromiter(accumulate(map(len, rows), initial=0), np.int32)


def _fields(items: Sequence[Any], names: Sequence[str], kind: pa.StructType) -> list[pa.Array]:
    return [pa.array(list(map(attrgetter(name), items)), kind.field(name).type) for name in names]


def _structs(items: Sequence[Any], kind: pa.StructType) -> pa.Array:
    names = [kind.field(index).name for index in range(kind.num_fields)]
    return pa.StructArray.from_arrays(_fields(items, names, kind), fields=list(kind))


def _turns(turns: Sequence[Turn]) -> pa.Array:
    calls = _lists([turn.calls for turn in turns], lambda items: _structs(items, CALL_TYPE))
    return pa.StructArray.from_arrays(
        [*_fields(turns, _TURN, TURN_TYPE), calls], fields=list(TURN_TYPE)
    )
