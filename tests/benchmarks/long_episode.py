"""An episode of 4,000 tokens, and what a learner would note of it."""

import time
from dataclasses import replace

import numpy as np
import pyarrow as pa

from envs.messages import Message
from envs.tools import AnswerStatus
from learner.report import ANNOTATION_SCHEMA
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
)

PROMPT, TURNS, TURN = 160, 40, 96
"""Tokens of the prompt, turns, and tokens of a turn."""


def long_episode() -> Episode:
    """Return an episode of 4,000 tokens; an eighth of its turns make a call."""
    lease = Lease(
        run="bench",
        episode="g000000-00",
        kind=RolloutKind.TRAIN,
        group="g000000",
        group_number=0,
        task="train-0",
        sample_index=0,
        attempt=0,
        seed=0,
    )
    return _episode_of(lease, _turns())


def _turns() -> tuple[Turn, ...]:
    call = CallRecord(
        name="probe",
        arguments='{"x": 1}',
        status=AnswerStatus.OK,
        result="17",
        seconds=0.01,
        cpu_seconds=0.01,
        purpose="trial",
    )
    turn = Turn(
        phase=Phase.TRIAL,
        start=0,
        end=0,
        text="<trial> probe the tool </trial>" * 4,
        finish_reason="stop",
        policy_error="",
    )
    return tuple(
        replace(
            turn,
            start=PROMPT + i * TURN,
            end=PROMPT + (i + 1) * TURN,
            calls=() if i % 8 else (call,),
        )
        for i in range(TURNS)
    )


def _episode_of(lease: Lease, turns: tuple[Turn, ...]) -> Episode:
    tokens = PROMPT + TURNS * TURN
    return Episode(
        lease=lease,
        environment="catalog",
        split="train",
        mode="trial",
        outcome=Outcome.ANSWERED,
        error="",
        reward=1.0,
        reward_parts={"answer": 1.0},
        answer="17",
        question="?",
        tags={},
        token_ids_T=tuple(range(tokens)),
        phases_T=(*(Phase.PROMPT,) * PROMPT, *(Phase.TRIAL,) * (TURNS * TURN)),
        logprobs_T=(*(float("nan"),) * PROMPT, *(-1.0,) * (TURNS * TURN)),
        spans=(VersionSpan(PROMPT, 0),),
        turns=turns,
        messages=(Message("user", "?" * 500),),
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=0),
        timings=Timings(started_at=0.0, wall_s=1.0, queue_s=0.0, generate_s=1.0, tool_s=0.0),
        source="policy",
        worker="worker-1",
        tool_server="",
        isolation="",
        extra={"trial_calls": 5.0},
    )


def annotations_of(table: pa.Table) -> tuple[pa.Table, float]:
    """Return one annotation per sampled token, and the CPU seconds that it took to make them."""
    started = time.thread_time()
    rows, sampled = table.num_rows, TURNS * TURN
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * sampled)
    positions = np.tile(np.arange(PROMPT, PROMPT + sampled, dtype=np.int32), rows)
    numbers = np.full(rows * sampled, -1.0, np.float32)
    annotations = pa.Table.from_arrays(
        [
            table["episode"].combine_chunks(),
            pa.array(np.zeros(rows, np.float32)),
            pa.nulls(rows, pa.float32()),
            pa.array([""] * rows),
            pa.ListArray.from_arrays(offsets, pa.array(positions)),
            *(pa.ListArray.from_arrays(offsets, pa.array(numbers)) for _ in range(2)),
        ],
        schema=ANNOTATION_SCHEMA,
    )
    return annotations, time.thread_time() - started
