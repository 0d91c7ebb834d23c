"""Run directories for the tests of the pages, and a dashboard that serves them in this process."""

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn

from cluster.dashboard.app import create_app
from cluster.dashboard.serve import Wanted, settings_of
from cluster.dashboard.settings import Tokens
from envs.tools import AnswerStatus
from rollout.engine import VersionSpan
from rollout.episode import Episode, Phase, RolloutKind, Turn
from rollout.episode_schema import to_batch
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind
from tests.cluster.dashboard.sample_run import (
    CONFIG,
    call_of,
    episode_of,
    lease_of,
    write_sample_run,
)

OPERATOR, VIEWER = "operator-token-0123456789", "viewer-token-0123456789"
TASKS = 6
HOSTILE = (
    "<script>window.hit=1</script>",
    "<svg onload=window.hit=1><animate onbegin=window.hit=1></svg>",
    "<img src=x onerror=window.hit=1>",
    "[x](javascript:window.hit=1) <a href='javascript:window.hit=1'>y</a>",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07 bell",
    "user\u202e\u2066 txt.exe\u2069",
    "a\x00b pass\u200bword\u200d\ufeff",
    "data:image/svg+xml;base64," + "A" * 60_000,
    "[" * 200 + "]" * 200,
    "</textarea></title>--><!--{{constructor.constructor('x')()}}${7*7}",
    "x" * 300_000,
)
"""Texts that attack whoever shows them."""


@dataclass(frozen=True, slots=True)
class Site:
    """A dashboard that answers at `url`; `live` is a run that the test may write to."""

    url: str
    live: RunDirectory


def write_runs(root: Path) -> RunDirectory:
    """Write one of each kind of run; return the one that is still open."""
    sample = write_sample_run(root / "sample", close=False)
    _slow_group(sample)
    sample.close()
    for number, name in enumerate(("sft", "grpo")):
        _evaluation(root / name, name, wins=number * 2)
    _study(root / "study")
    write_hostile(root / "hostile")
    return write_sample_run(root / "live", close=False)


def _slow_group(run: RunDirectory) -> None:
    """Add a group whose tool `slow` times out, and which makes no trial in two of four episodes."""
    leases = [lease_of(6, sample) for sample in range(4)]
    run.ledger.lease(leases)
    for sample, lease in enumerate(leases):
        whole = episode_of(lease)
        call = call_of("slow", "timed out after 5 s", "execution", AnswerStatus.TIMEOUT)
        last = replace(whole.turns[2], calls=(call,))
        turns = (*whole.turns[:2], last) if sample < 2 else (last,)
        run.append(to_batch([replace(whole, turns=turns)]))
        run.ledger.finish(lease)


def _evaluation(path: Path, name: str, wins: int) -> None:
    """Write an evaluation: of six tasks, `wins` more than two are right, task 1 excepted."""
    right = {task for task in range(2 + wins) if wins == 0 or task != 1}
    info = RunInfo(
        run=name, kind=RunKind.EVAL, seed=1, created_at=1.7e9, command=f"trialrun eval {name}"
    )
    with RunDirectory.create(path, CONFIG, info) as run:
        for task in range(TASKS):
            lease = replace(
                lease_of(task, 0), run=name, kind=RolloutKind.EVAL, task=f"question-{task}"
            )
            score = float(task in right)
            run.ledger.lease([lease])
            run.append(
                to_batch(
                    [
                        episode_of(
                            lease,
                            question=f"What is {task} doubled?",
                            reward=score,
                            reward_parts={"answer": score, "exact": score},
                            split="test",
                            tags={"depth": str(task % 2)},
                        )
                    ]
                )
            )
            run.ledger.finish(lease)


def _study(path: Path) -> None:
    for seed in (1, 2):
        for arm in ("direct", "trial"):
            cell = path / f"seed-{seed}" / "evals" / arm / "unseen" / "t1"
            _evaluation(cell / "run", f"{arm}-{seed}", wins=2 if arm == "trial" else 0)
            result = {"accuracy": 0.5 if arm == "trial" else 0.25, "tasks": TASKS}
            (cell / "result.json").write_text(json.dumps(result))
    (path / "study.json").write_text("{}")


def write_hostile(path: Path) -> None:
    """Write a run whose every text attacks, names of tools, workers and tags included."""
    info = RunInfo(run="hostile", kind=RunKind.TRAIN, seed=1, created_at=1.7e9, command=HOSTILE[0])
    with RunDirectory.create(path, CONFIG, info) as run:
        for number, text in enumerate(HOSTILE):
            leases = [lease_of(number, sample) for sample in range(2)]
            run.ledger.lease(leases)
            for lease in leases:
                run.append(to_batch([_attacking(lease_episode=episode_of(lease), text=text)]))
                run.ledger.finish(lease)
        run.layout.log.write_bytes(b"\xff\xfe\x00<script>window.hit=1</script>\x1b[31m error\n" * 3)


def _attacking(*, lease_episode: Episode, text: str) -> Episode:
    first = lease_episode.turns[0]
    calls = (call_of(text[:200], text, "trial", first.calls[0].status),)
    tags = {text[:100]: text[:100]}
    turn = Turn(
        phase=Phase.TRIAL, start=3, end=6, text=text, finish_reason="stop", policy_error="",
        calls=calls,
    )  # fmt: skip
    return replace(
        lease_episode, question=text, answer=text, error=text[:500], tags=tags,
        worker=text[:100], reward_parts={text[:50]: 0.5}, turns=(turn,),
    )  # fmt: skip


def long_episode(run: RunDirectory, group: int, tokens: int) -> str:
    """Store an episode of that many tokens, a turn for every 1,000 of them; return its id."""
    lease = lease_of(group, 0)
    phases = [0, *[(1, 3, 4)[index // 500 % 3] for index in range(tokens - 1)]]
    turns = []
    for start in range(1, tokens - 400, 1500):
        phase = Phase.TRIAL if phases[start] == 1 else Phase.EXECUTION
        turns.append(
            Turn(
                phase=phase, start=start, end=start + 400, text=f"turn at {start}",
                finish_reason="stop", policy_error="",
            )
        )  # fmt: skip
    run.ledger.lease([lease])
    episode = episode_of(
        lease,
        token_ids_T=tuple(100 + index % 500 for index in range(tokens)),
        phases_T=tuple(phases),
        logprobs_T=tuple(
            -(index % 97) / 40 if phase in (1, 3) else float("nan")
            for index, phase in enumerate(phases)
        ),
        turns=tuple(turns),
        spans=(VersionSpan(1, 0), VersionSpan(tokens // 2, 1)),
    )
    run.append(to_batch([episode]))
    run.ledger.finish(lease)
    return lease.episode


@contextmanager
def served(roots: Sequence[Path], cache: Path) -> Iterator[str]:
    """Serve a dashboard over `roots`; yield its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    wanted = Wanted(cache=cache, user="tester", version="test")
    tokens = Tokens(operator=OPERATOR, viewer=VIEWER)
    app = create_app(settings_of(wanted, tuple(roots), tokens, port))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="on")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        if time.monotonic() > end or not thread.is_alive():
            raise AssertionError("the dashboard did not start within 30 s")
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
