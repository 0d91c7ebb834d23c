"""Episodes survive Arrow exactly; other versions are upgraded or refused."""

import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.errors import StoreError
from envs.messages import Message
from envs.tools import AnswerStatus
from rollout import episode_schema
from rollout.engine import VersionSpan
from rollout.episode import CallRecord, Episode, Lease, Outcome, Phase, Sampling, Timings, Turn
from rollout.episode_schema import (
    EPISODE_SCHEMA,
    VERSION_KEY,
    from_batch,
    from_wire,
    ragged,
    schema_version,
    to_batch,
    to_wire,
    upgrade,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
SECONDS = st.floats(0, 1e6)
NUMBERS = st.dictionaries(TEXT, FLOAT32, max_size=3)

CALLS = st.builds(
    CallRecord,
    name=TEXT,
    arguments=TEXT,
    status=st.sampled_from(AnswerStatus),
    result=TEXT,
    seconds=SECONDS,
    cpu_seconds=SECONDS,
    purpose=st.sampled_from(["trial", "execution"]),
)
TURNS = st.builds(
    Turn,
    phase=st.sampled_from(Phase),
    start=INT32,
    end=INT32,
    text=TEXT,
    finish_reason=TEXT,
    policy_error=TEXT,
    calls=st.lists(CALLS, max_size=2).map(tuple),
)


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    length = draw(st.integers(0, 20))
    outcome = draw(st.sampled_from(Outcome))

    def column(values: st.SearchStrategy) -> tuple:
        return tuple(draw(st.lists(values, min_size=length, max_size=length)))

    return Episode(
        lease=draw(st.builds(Lease, TEXT, TEXT, TEXT, TEXT, INT32, INT32, INT64)),
        environment=draw(TEXT),
        split=draw(TEXT),
        mode=draw(st.sampled_from(["direct", "trial", "free"])),
        outcome=outcome,
        error=draw(TEXT),
        reward=draw(FLOAT32) if outcome.counts else None,
        reward_parts=draw(NUMBERS),
        answer=draw(TEXT),
        question=draw(TEXT),
        tags=draw(st.dictionaries(TEXT, TEXT, max_size=3)),
        token_ids_T=column(INT32),
        phases_T=column(st.integers(0, 4)),
        logprobs_T=column(FLOAT32 | st.just(math.nan)),
        spans=tuple(draw(st.lists(st.builds(VersionSpan, INT32, INT32), max_size=3))),
        turns=tuple(draw(st.lists(TURNS, max_size=3))),
        messages=tuple(
            draw(st.lists(st.builds(Message, st.sampled_from(["user", "tool"]), TEXT), max_size=3))
        ),
        sampling=Sampling(draw(FLOAT32), draw(FLOAT32), draw(INT32), draw(INT64)),
        timings=Timings(
            started_at=draw(SECONDS),
            wall_s=draw(FLOAT32),
            queue_s=draw(FLOAT32),
            generate_s=draw(FLOAT32),
            tool_s=draw(FLOAT32),
        ),
        source=draw(TEXT),
        worker=draw(TEXT),
        tool_server=draw(TEXT),
        isolation=draw(TEXT),
        extra=draw(NUMBERS),
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(episodes(), max_size=4), st.data())
def test_a_batch_gives_back_the_same_episodes(written: list[Episode], data: st.DataObject) -> None:
    batch = to_batch(written)
    batch.validate(full=True)
    assert batch.schema.equals(EPISODE_SCHEMA, check_metadata=True)
    # repr: NaN logprobs are never equal, and types must come back as they were.
    assert repr(from_batch(batch)) == repr(written)
    carried = from_wire(to_wire(batch))
    start = data.draw(st.integers(0, len(written)))
    assert repr(from_batch(carried.slice(start))) == repr(written[start:])


@settings(max_examples=20, deadline=None)
@given(st.lists(episodes(), min_size=1, max_size=4))
def test_derived_columns_agree_with_the_episode(written: list[Episode]) -> None:
    batch = to_batch(written)
    assert batch.column("loss_mask").to_pylist() == [list(e.loss_mask_T) for e in written]
    assert batch.column("oldest_version").to_pylist() == [e.oldest_version for e in written]


def test_token_columns_are_read_as_numpy(episode_with: Callable[..., Episode]) -> None:
    batch = to_batch([episode_with("a", tokens=9), episode_with("b", tokens=12)])
    for part, lengths in ((batch, [9, 12]), (batch.slice(1), [12])):
        column = ragged(part, "token_ids")
        assert column.values.dtype == np.int32
        assert np.diff(column.offsets).tolist() == lengths
        assert column.row(len(lengths) - 1).tolist() == list(range(100, 112))
    logprobs = ragged(batch, "logprobs")
    assert np.isnan(logprobs.row(0)).tolist() == [True] * 4 + [False, True] + [False] * 3
    assert not logprobs.values.flags.owndata


def test_rewards_that_are_missing_stay_missing(episode_with: Callable[..., Episode]) -> None:
    batch = to_batch([episode_with("a"), episode_with("b", outcome=Outcome.INFRA_FAILED)])
    assert batch.column("reward").to_pylist() == [1.0, None]


def with_version(version: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.replace_schema_metadata({VERSION_KEY: version})


def test_a_newer_version_is_refused(episode_with: Callable[..., Episode]) -> None:
    batch = with_version("99", to_batch([episode_with()]))
    with pytest.raises(StoreError, match="version 99: they were written by a newer trialrun"):
        from_batch(batch)


def test_an_older_version_is_upgraded(
    monkeypatch: pytest.MonkeyPatch, episode_with: Callable[..., Episode]
) -> None:
    def rename(batch: pa.RecordBatch) -> pa.RecordBatch:
        names = ["worker" if name == "actor" else name for name in batch.schema.names]
        return with_version("1", batch.rename_columns(names))

    monkeypatch.setitem(episode_schema._MIGRATIONS, 0, rename)
    new = to_batch([episode_with()])
    old = with_version(
        "0", new.rename_columns([n.replace("worker", "actor") for n in new.schema.names])
    )
    assert upgrade(old).schema.equals(EPISODE_SCHEMA, check_metadata=True)
    assert repr(from_batch(old)) == repr(from_batch(new))


def test_other_tables_are_not_taken_for_episodes(episode_with: Callable[..., Episode]) -> None:
    with pytest.raises(StoreError, match=r"without trialrun\.episode_version: columns \['a'\]"):
        schema_version(pa.schema({"a": pa.int8()}))
    with pytest.raises(StoreError, match=r"found others: \['worker'\]"):
        upgrade(to_batch([episode_with()]).drop_columns(["worker"]))
