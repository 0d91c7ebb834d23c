"""A small run with one of everything, written by the store's own code."""

from dataclasses import replace
from pathlib import Path

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
from rollout.store.control import ControlEvent, ScaleRequest
from rollout.store.ledger_state import DropReason
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind

CONFIG = '[run]\nname = "sample"\nsteps = 2\n\n[episode]\ntrial_sessions = "isolated"\n'
GROUP = 4
GROUPS = 6
NAN = float("nan")


def lease_of(group: int, sample: int, attempt: int = 0) -> Lease:
    """Return the lease of one episode."""
    name = f"g{group:06d}"
    return Lease(
        run="sample",
        episode=f"{name}-{sample:02d}",
        kind=RolloutKind.TRAIN,
        group=name,
        group_number=group,
        task=f"task-{group % 3}",
        sample_index=sample,
        attempt=attempt,
        seed=group * 100 + sample,
    )


def call_of(name: str, result: str, purpose: str, status: AnswerStatus) -> CallRecord:
    """Return a tool call."""
    return CallRecord(
        name=name,
        arguments='{"q": "' + name + '"}',
        status=status,
        result=result,
        seconds=0.25,
        cpu_seconds=0.05,
        purpose=purpose,  # type: ignore[arg-type]
    )


def episode_of(lease: Lease, **changed: object) -> Episode:
    """Return an episode of three turns: a trial, its experience, an execution with an answer."""
    sample = lease.sample_index
    failed = AnswerStatus.TOOL_ERROR if sample == 1 else AnswerStatus.OK
    turns = (
        Turn(
            phase=Phase.TRIAL, start=3, end=6, text=f"try {sample}", finish_reason="stop",
            policy_error="", calls=(call_of("search", f"found {sample}", "trial", failed),),
        ),
        Turn(
            phase=Phase.EXPERIENCE, start=7, end=9, text="<experience>noted</experience>",
            finish_reason="stop", policy_error="",
        ),
        Turn(
            phase=Phase.EXECUTION, start=9, end=12, text=f"<answer>value {sample}</answer>",
            finish_reason="stop", policy_error="",
            calls=(call_of("convert", f"value {sample}", "execution", AnswerStatus.OK),),
        ),
    )  # fmt: skip
    phases = [0, 0, 0, 1, 1, 1, 4, 2, 2, 3, 3, 3]
    base = Episode(
        lease=lease,
        environment="catalog",
        split="train" if lease.group_number % 2 else "heldout",
        mode="trial",
        outcome=Outcome.ANSWERED,
        error="",
        reward=sample / 4,
        reward_parts={"answer": float(sample > 1), "length": -0.125},
        answer=f"value {sample}",
        question=f"What is {lease.task}?",
        tags={"depth": str(lease.group_number % 3 + 1)},
        token_ids_T=tuple(range(100, 112)) if sample else (*tuple(range(100, 110)), 7, 8),
        phases_T=tuple(phases),
        logprobs_T=tuple(-0.5 if phase in (1, 2, 3) else NAN for phase in phases),
        spans=(VersionSpan(3, 0), VersionSpan(9, 1)),
        turns=turns,
        messages=(
            Message("system", "You have tools."),
            Message("user", f"What is {lease.task}?"),
            Message("assistant", turns[0].text),
            Message("tool", f"found {sample}"),
            Message("assistant", turns[1].text),
            Message("assistant", turns[2].text),
        ),
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=lease.seed),
        timings=Timings(
            started_at=1.7e9 + lease.group_number * 10 + sample, wall_s=2.0, queue_s=0.25,
            generate_s=1.0, tool_s=0.5,
        ),
        source="policy",
        worker=f"worker-{sample % 2}",
        tool_server="node/0.17",
        isolation="namespaces",
        extra={"trial_calls": 1.0},
    )  # fmt: skip
    return replace(base, **changed)  # type: ignore[arg-type]


def failed(lease: Lease) -> Episode:
    """Return an episode that the infrastructure ended."""
    return episode_of(
        lease,
        outcome=Outcome.INFRA_FAILED,
        reward=None,
        reward_parts={},
        answer="",
        error="ToolServerError: connection refused",
    )


def annotations_of(episodes: list[str], advantage: float) -> pa.Table:
    """Return what the learner records: six sampled tokens scored."""
    places = [3, 4, 5, 9, 10, 11]
    count = len(episodes)
    return pa.table(
        {
            "episode": pa.array(episodes),
            "advantage": pa.array([advantage + i for i in range(count)], pa.float32()),
            "trial_advantage": pa.nulls(count, pa.float32()),
            "dropped": pa.array([""] * count),
            "loss_positions": pa.array([places] * count, pa.list_(pa.int32())),
            "trainer_logprobs": pa.array([[-0.25] * 6] * count, pa.list_(pa.float32())),
            "entropies": pa.array([[0.75] * 6] * count, pa.list_(pa.float32())),
        }
    )


def write_group(run: RunDirectory, group: int) -> list[str]:
    """Schedule, store and finish a group; sample 3 of group 1 fails once and is retried."""
    leases = [lease_of(group, sample) for sample in range(GROUP)]
    run.ledger.lease(leases)
    names = []
    for lease in leases:
        if group == 1 and lease.sample_index == 3:
            run.append(to_batch([failed(lease)]))
            lease = run.ledger.re_lease(lease.episode, "the tool server was lost")
        same = {"reward": 1.0} if group == 2 else {}
        run.append(to_batch([episode_of(lease, **same)]))
        run.ledger.finish(lease)
        names.append(lease.episode)
    return names


def write_sample_run(path: Path, *, close: bool = True) -> RunDirectory:
    """Write the run: two steps, a retry, an equal group, a failed episode, one in progress."""
    info = RunInfo(
        run="sample", kind=RunKind.TRAIN, seed=1, created_at=1.7e9, command="trialrun train sample"
    )
    run = RunDirectory.create(path, CONFIG, info)
    groups = [write_group(run, group) for group in range(3)]
    run.ledger.train(1, groups[0] + groups[1])
    run.annotate(1, annotations_of(groups[0] + groups[1], -1.0))
    run.ledger.drop(groups[2], DropReason.ZERO_VARIANCE, collected_for=1)
    run.record_metrics(1, metrics_of(1, 0.25))
    groups += [write_group(run, group) for group in range(3, 5)]
    run.ledger.train(2, groups[3])
    run.annotate(2, annotations_of(groups[3], 2.0))
    run.record_metrics(2, metrics_of(2, 0.5))
    last = [lease_of(5, sample) for sample in range(GROUP)]
    run.ledger.lease(last)
    run.append(to_batch([failed(last[0])]))
    run.ledger.drop([last[0].episode], DropReason.INFRA_FAILED)
    request = ScaleRequest(workers=3)
    run.record_control(ControlEvent(at=1.7e9, actor="ann", request=request, request_id="1",
                                    workers=3))  # fmt: skip
    run.layout.log.write_text(
        "2026-01-02 03:04:05 step 1\nan indented line\n2026-01-02 03:04:06 error: a worker failed\n"
    )
    if close:
        run.close()
    return run


def metrics_of(step: int, reward: float) -> dict[str, float]:
    """Return the metrics of a step."""
    return {
        "step": float(step),
        "reward": reward,
        "success": reward,
        "loss": NAN,
        "loss_tokens": 24.0,
        "step_s": 10.0,
        "collect_s": 8.0,
        "learn_s": 1.0,
        "push_s": 0.5,
        "staleness_mean": 0.0,
        "sampled_tokens_per_s": 100.0,
        "workers": 2.0,
    }


STORED = GROUP * 5 + 1 + 1
"""Rows: five whole groups, an attempt that was retried, and one failed episode."""
