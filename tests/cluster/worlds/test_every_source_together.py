"""Tools of every source in one task, and every kind of scorer, through the commands.

Three stateful classes, an MCP server with its state on disk, a simulated API, OpenEnv's own example
and a judge, eight episodes at once. The calls of their trials would be seen in what the same calls
of the execution are told.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from rollout.episode import Episode, Outcome
from rollout.store.run_reader import RunReader
from tests.cluster.worlds.combined_world import (
    ANSWER,
    EXECUTION,
    FRESH,
    POSITIONS,
    TOOLS,
    TRIAL,
    models,
    parrot,
    write_model,
    write_world,
)

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(1200)]

COMMAND = (sys.executable, "-c", "from cluster.cli.main import main; main()")
EPISODES = 8
SOURCES = {"the sandbox": "sandbox", "mcp-stdio": "scratch", "openenv": "session"}
"""What `check` says of whose state it is, by the first words of a source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """The folder of all runs, and what every command that takes a recipe is given."""

    runs: Path
    teacher: tuple[str, ...]
    settings: tuple[str, ...]

    def run(self, *arguments: str) -> str:
        """Return the standard output of a command, which must succeed."""
        ended = subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.runs,
            env={**os.environ, "RAY_worker_niceness": "0"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-6000:]
        return ended.stdout


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, interop_bin: Path) -> Iterator[Together]:
    folder = tmp_path_factory.mktemp("together")
    runs = folder / "runs"
    runs.mkdir()
    model = write_model(folder / "model")
    with models() as served, parrot(folder, interop_bin) as openenv:
        world = write_world(folder / "world", openenv)
        yield Together(
            runs=runs,
            teacher=("--base-url", served.base_url, "--model", "teacher"),
            settings=(
                *(f"env.path={world}", f"run.dir={runs}", f"model.path={model}"),
                *("model.dtype=float32", f"model.max_model_len={POSITIONS}"),
                *(f"judge.base_url={served.base_url}", "judge.model=judge"),
                *("tools.isolation.required=seccomp", "tools.isolation.profile=files"),
                *("tools.record=true", "episode.max_calls_per_turn=6", "episode.prompt=compact"),
                *("episode.trial.calls=8", "episode.execution.calls=8"),
                *("episode.trial.tokens=1200", "episode.execution.tokens=1200"),
                *("rollouts.workers=1", f"rollouts.episodes_per_worker={EPISODES}"),
            ),
        )


@pytest.fixture(scope="module")
def taught(together: Together) -> list[Episode]:
    """What the teacher played, eight episodes at once."""
    once = (f"collect.concurrency={EPISODES}", "collect.samples=2")
    asked = (*once, "collect.endpoint.check_model=false")
    source = ("--source", "endpoint", *together.teacher, "--out", str(together.runs / "teacher"))
    together.run("collect", "file", *source, *together.settings, *asked)
    reader = RunReader(together.runs / "teacher")
    return [reader.episode(row.episode) for row in reader.episodes()]


def test_check_loads_every_source_and_says_whose_state_it_is(together: Together) -> None:
    said = together.run("check", "file", *together.settings)
    assert "nothing is wrong" in said
    for source, state in SOURCES.items():
        (line, *_) = [line for line in said.splitlines() if line.startswith(source)]
        assert f"state {state}; loads" in line


def test_trials_leave_no_trace_and_every_scorer_sees_the_execution(taught: list[Episode]) -> None:
    assert len(taught) == EPISODES
    for episode in taught:
        calls = [call for turn in episode.turns for call in turn.calls]
        told = {
            purpose: [call.result for call in calls if call.purpose == purpose]
            for purpose in ("trial", "execution")
        }
        assert [len(results) for results in told.values()] == [6, 6]
        assert told["execution"][: len(FRESH)] == list(FRESH)
        assert (episode.outcome, episode.reward) == (Outcome.ANSWERED, 1.0)
        parts = {name: episode.reward_parts[name] for name in ("function", "environment", "judge")}
        assert set(parts.values()) == {1.0}
        assert episode.reward_parts["gold"] == episode.reward_parts["probes"] == 1.0


def test_replayed_episodes_are_equal(together: Together, taught: list[Episode]) -> None:
    found = json.loads(together.run("episodes", "replay", str(together.runs / "teacher"), "--json"))
    assert (found["episodes"], found["equal"]) == (EPISODES, EPISODES)


@pytest.fixture(scope="module")
def trained(together: Together, taught: list[Episode]) -> Path:
    """The run of two steps from a model that learnt what the teacher did nearly by heart."""
    del taught
    lessons = ("run.name=taught", "sft.epochs=80", "sft.lr=6e-3")
    demonstrations = ("--from", str(together.runs / "teacher"))
    together.run("sft", "file", *demonstrations, *together.settings, *lessons)
    steps = ("run.name=trained", "run.steps=2", "rollouts.groups_per_step=2")
    sizes = ("rollouts.group_size=4", "rollouts.max_refills=1", "run.checkpoint_every=2")
    model = f"model.path={together.runs / 'taught' / 'model'}"
    together.run("train", "file", *together.settings, model, *steps, *sizes)
    return together.runs / "trained"


def test_a_policy_calls_every_source_in_training(trained: Path) -> None:
    reader = RunReader(trained)
    assert [row.step for row in reader.metrics()] == [1, 2]
    rows = reader.episodes()
    assert len(rows) >= 2 * EPISODES
    assert not [row for row in rows if row.outcome == Outcome.INFRA_FAILED]
    episodes = [reader.episode(row.episode) for row in rows]
    answered = [call for episode in episodes for turn in episode.turns for call in turn.calls]
    assert {call.name for call in answered if call.status == "ok"} == {*TOOLS}
    assert any(episode.reward == 1.0 for episode in episodes)


def test_an_evaluation_scores_it_and_its_episodes_are_replayed(
    together: Together, trained: Path
) -> None:
    model = f"model.path={trained / 'model'}"
    run = str(together.runs / "measured")
    asked = ("--run", run, "eval.split=train", "eval.tasks=4", "eval.samples=2", "--json")
    found = json.loads(together.run("eval", "file", *together.settings, model, *asked))
    assert (found["episodes"], found["counted"]) == (EPISODES, EPISODES)
    assert found["accuracy"] > 0
    again = json.loads(together.run("episodes", "replay", run, "--json"))
    assert (again["episodes"], again["equal"]) == (EPISODES, EPISODES)


async def test_it_is_served_to_eight_clients_at_once(together: Together) -> None:
    environ = os.environ | {"TRIALRUN_TOKEN": "secret"}
    command = [*COMMAND, "serve", "file", *together.settings, "tools.record=false"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            url = await asyncio.wait_for(asyncio.to_thread(_address, process), 90)
            async with asyncio.timeout(120):
                found = await asyncio.gather(*(_episode(url) for _ in range(EPISODES)))
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
    assert found == [(list(FRESH), 1.0)] * EPISODES


def _address(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"ready "):
            return line.split()[1].decode()
    raise AssertionError("the server ended")


async def _episode(url: str) -> tuple[list[str], float]:
    """Play an episode over OpenEnv; return what its execution was told, and its reward."""
    socket_url = url.replace("http", "ws", 1) + "/ws"
    bearer = {"authorization": "Bearer secret"}
    async with connect(socket_url, additional_headers=bearer, open_timeout=60) as socket:

        async def ask(kind: str, **content: object) -> dict[str, Any]:
            await socket.send(json.dumps({"type": kind, "data": content}))
            reply = json.loads(await socket.recv())
            assert reply["type"] != "error", reply
            return reply["data"]

        async def tell(calls: list[dict[str, Any]]) -> list[str]:
            told = []
            for call in calls:
                action = {"tool_name": call["name"], "arguments": call["arguments"]}
                reply = await ask("step", type="call_tool", **action)
                told.append(reply["observation"]["result"])
            return told

        await ask("reset", mode="trial", seed=1)
        await tell(TRIAL)
        await ask("step", type="begin_execution")
        told = await tell(EXECUTION)
        last = await ask("step", type="answer", text=ANSWER)
        return told[: len(FRESH)], last["reward"]
