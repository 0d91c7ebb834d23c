"""A large run directory, written by the store's own code: for benchmarks of what reads one.

    python -m tests.benchmarks.big_run FOLDER --episodes 1000000
    python -m tests.benchmarks.big_run FOLDER --episodes 20000 --per-second 200

Everything follows from the seed. It is written as it is made, so memory does not grow with it. Some
hundred different episodes are repeated with other names, times, rewards, versions and workers:
building a million of them one by one would take an hour.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa

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
)
from rollout.episode_schema import to_batch
from rollout.store.ledger_state import DropReason
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind

GROUP = 8
GROUPS_PER_STEP = 64
TOOLS = ("search", "calculator", "calendar", "geocode", "convert", "lookup", "translate", "weather")
OUTCOMES = (
    *([Outcome.ANSWERED] * 16),
    *([Outcome.TRUNCATED] * 2),
    *(Outcome.POLICY_ERROR, Outcome.INFRA_FAILED),
)
NEEDLE = "xylophone-quartz"
"""A text that one episode in ten thousand has."""
_PATTERNS = 512
_NEEDLE_EVERY = 10_000
_ANNOTATED_EVERY = 25
_WORDS = (
    "the", "tool", "returns", "a", "list", "of", "cities", "with", "population", "and", "area",
    "for", "each", "year", "since", "1990", "which", "is", "sorted", "by", "name", "value",
)  # fmt: skip
_CONFIG = """[run]
name = "big"
steps = 2000

[episode]
trial_sessions = "isolated"

[rollouts]
workers = 16
"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is written."""

    episodes: int
    seed: int = 0
    tokens: int = 120


def write_big_run(path: Path, sizes: Sizes, per_second: float = 0.0) -> None:
    """Write a run at `path`; with `per_second` no faster than so many episodes a second."""
    info = RunInfo(run="big", kind=RunKind.TRAIN, seed=sizes.seed, created_at=1.7e9)
    patterns = _patterns(sizes)
    started = time.perf_counter()
    with RunDirectory.create(path, _CONFIG, info) as run:
        for first, batch in _batches(sizes, patterns):
            _write(run, first, batch)
            if per_second:
                ahead = (first + len(batch)) / per_second - (time.perf_counter() - started)
                time.sleep(max(ahead, 0.0))


def _write(run: RunDirectory, first: int, batch: pa.RecordBatch) -> None:
    """Schedule, store and close the groups of one step."""
    rows = batch.select(["episode", "group", "group_number", "task", "sample_index", "outcome"])
    groups: dict[str, list[Lease]] = {}
    counts: dict[str, bool] = {}
    for row in rows.to_pylist():
        lease = Lease(
            run="big",
            kind=RolloutKind.TRAIN,
            attempt=0,
            seed=row["group_number"] * GROUP + row["sample_index"],
            **{name: row[name] for name in ("episode", "group", "group_number", "task")},
            sample_index=row["sample_index"],
        )
        groups.setdefault(row["group"], []).append(lease)
        counts[lease.episode] = Outcome(row["outcome"]).counts
    for leases in groups.values():
        run.ledger.lease(leases)
    run.append(batch)
    step = first // (GROUP * GROUPS_PER_STEP) + 1
    trained: list[str] = []
    for number, leases in enumerate(groups.values()):
        good = [lease for lease in leases if counts[lease.episode]]
        for lease in good:
            run.ledger.finish(lease)
        lost = [lease.episode for lease in leases if not counts[lease.episode]]
        if lost:
            run.ledger.drop(lost, DropReason.INFRA_FAILED)
        names = [lease.episode for lease in good]
        if number % 5 == 4:
            run.ledger.drop(names, DropReason.ZERO_VARIANCE, collected_for=step)
        else:
            trained += names
    run.ledger.train(step, trained)
    run.ledger.archive_settled()
    run.record_metrics(step, _metrics(step, batch))
    if (
        step % _ANNOTATED_EVERY == 0
    ):  # each is forced to the disk, which would take most of the time
        run.annotate(step, _annotations(trained))


def _metrics(step: int, batch: pa.RecordBatch) -> dict[str, float]:
    rewards = batch.column("reward").drop_null().to_numpy()
    return {
        "step": float(step),
        "reward": float(rewards.mean()),
        "success": float((rewards > 0.5).mean()),
        "loss_tokens": float(len(batch) * 60),
        "step_s": 20.0,
        "collect_s": 14.0,
        "learn_s": 4.0,
        "push_s": 0.5,
        "staleness_mean": 0.4,
        "sampled_tokens_per_s": 4_000.0 + step % 100,
        "workers": 16.0,
    }


def _annotations(episodes: list[str]) -> pa.Table:
    count = len(episodes)
    empty = pa.array([[]] * count, pa.list_(pa.float32()))
    return pa.table(
        {
            "episode": pa.array(episodes, pa.string()),
            "advantage": pa.array(np.linspace(-2, 2, count), pa.float32()),
            "trial_advantage": pa.nulls(count, pa.float32()),
            "dropped": pa.array([""] * count),
            "loss_positions": pa.array([[]] * count, pa.list_(pa.int32())),
            "trainer_logprobs": empty,
            "entropies": empty,
        }
    )


def _batches(sizes: Sizes, patterns: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the episodes of a step at a time, and the number of the first."""
    random = np.random.default_rng(sizes.seed)
    per_step = GROUP * GROUPS_PER_STEP
    for first in range(0, sizes.episodes, per_step):
        count = min(per_step, sizes.episodes - first)
        numbers = np.arange(first, first + count)
        chosen = random.integers(0, _PATTERNS, count)
        batch = patterns.take(pa.array(chosen))
        yield first, _renamed(batch, numbers, random, first // per_step)


def _renamed(
    batch: pa.RecordBatch, numbers: np.ndarray, random: np.random.Generator, version: int
) -> pa.RecordBatch:
    groups, samples = numbers // GROUP, numbers % GROUP
    names = [f"g{group:06d}" for group in groups.tolist()]
    outcomes = batch.column("outcome").to_pylist()
    rewards = np.round(random.beta(0.6, 0.8, len(numbers)), 2).astype(np.float32)
    counted = np.array([Outcome(outcome).counts for outcome in outcomes])
    versions = np.maximum(version - random.integers(0, 3, len(numbers)), 0)
    questions = [
        f"{text} {NEEDLE}" if number % _NEEDLE_EVERY == 0 else text
        for text, number in zip(batch.column("question").to_pylist(), numbers.tolist(), strict=True)
    ]
    changed = {
        "episode": pa.array([f"{g}-{s:02d}" for g, s in zip(names, samples.tolist(), strict=True)]),
        "group": pa.array(names),
        "group_number": pa.array(groups, pa.int64()),
        "task": pa.array([f"task-{group % 5_000}" for group in groups.tolist()]),
        "sample_index": pa.array(samples, pa.int32()),
        "seed": pa.array(numbers, pa.int64()),
        "question": pa.array(questions),
        "reward": pa.array(rewards, pa.float32(), mask=~counted),
        "oldest_version": pa.array(versions, pa.int32()),
        "started_at": pa.array(1.7e9 + numbers / 40.0, pa.float64()),
        "worker": pa.array([f"worker-{n % 16}" for n in numbers.tolist()]),
    }
    columns = [changed.get(name, batch.column(name)) for name in batch.schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _patterns(sizes: Sizes) -> pa.RecordBatch:
    random = Random(sizes.seed)
    return to_batch([_episode(index, random, sizes.tokens) for index in range(_PATTERNS)])


def _episode(index: int, random: Random, tokens: int) -> Episode:
    outcome = OUTCOMES[index % len(OUTCOMES)]
    sizes = [max(tokens // 6, 2)] * 4
    phases = (Phase.TRIAL, Phase.EXPERIENCE, Phase.EXECUTION, Phase.EXECUTION)
    turns, token_phases = [], [int(Phase.PROMPT)] * max(tokens // 3, 1)
    for phase, size in zip(phases, sizes, strict=True):
        start = len(token_phases)
        token_phases += [int(phase)] * size
        calls = [] if phase is Phase.EXPERIENCE else [_call(random, phase)]
        turns.append(_turn(random, phase, (start, start + size), calls))
    length = len(token_phases)
    prompt = max(tokens // 3, 1)
    reward = 0.5 if outcome.counts else None
    return Episode(
        lease=Lease(
            run="big", episode="", kind=RolloutKind.TRAIN, group="", group_number=0, task="",
            sample_index=0, attempt=0, seed=0,
        ),
        environment="catalog" if index % 4 else "toolhop",
        split="train",
        mode=("trial", "direct", "free")[index % 3],
        outcome=outcome,
        error="" if outcome.counts else "ToolServerError: connection refused",
        reward=reward,
        reward_parts={"answer": float(random.randrange(2)), "length": -0.1} if reward else {},
        answer=_text(random, 3) if outcome is Outcome.ANSWERED else "",
        question=_text(random, 12),
        tags={"depth": str(random.randrange(1, 6)), "novelty": random.choice(("seen", "new"))},
        token_ids_T=tuple(random.randrange(50_000) for _ in range(length)),
        phases_T=tuple(token_phases),
        logprobs_T=tuple(
            float("nan") if i < prompt else -random.random() for i in range(length)
        ),
        spans=(VersionSpan(prompt, 0),),
        turns=tuple(turns),
        messages=(Message("system", _text(random, 40)), Message("user", _text(random, 12))),
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=index),
        timings=Timings(
            started_at=0.0, wall_s=random.expovariate(0.2), queue_s=0.1, generate_s=2.0, tool_s=0.4
        ),
        source="policy",
        worker="",
        tool_server="node/0.1",
        isolation="namespaces",
        extra={"trial_calls": 1.0},
    )  # fmt: skip


def _turn(random: Random, phase: Phase, span: tuple[int, int], calls: list[CallRecord]) -> Turn:
    return Turn(
        phase=phase,
        start=span[0],
        end=span[1],
        text=_text(random, 20),
        finish_reason="stop" if random.random() > 0.02 else "length",
        policy_error="" if random.random() > 0.05 else "malformed_json",
        calls=tuple(calls),
    )


def _call(random: Random, phase: Phase) -> CallRecord:
    status = random.choices(list(AnswerStatus), weights=(90, 6, 3, 1))[0]
    return CallRecord(
        name=random.choice(TOOLS),
        arguments='{"query": "' + _text(random, 3) + '"}',
        status=status,
        result=_text(random, 15),
        seconds=random.expovariate(10.0),
        cpu_seconds=random.expovariate(50.0),
        purpose="trial" if phase is Phase.TRIAL else "execution",
    )


def _text(random: Random, words: int) -> str:
    return " ".join(random.choice(_WORDS) for _ in range(words))


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--per-second", type=float, default=0.0)
    options = parser.parse_args()
    started = time.perf_counter()
    sizes = Sizes(options.episodes, options.seed, options.tokens)
    write_big_run(options.folder, sizes, options.per_second)
    size = sum(file.stat().st_size for file in options.folder.rglob("*") if file.is_file())
    seconds = time.perf_counter() - started
    print(f"{options.episodes:,} episodes, {size / 2**20:,.0f} MiB, {seconds:.0f} s")


if __name__ == "__main__":
    main()
