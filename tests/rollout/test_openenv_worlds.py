"""OpenEnv environments as whole tasks, served by the real package: a game, and its own example."""

import asyncio
import contextlib
import json
import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.config.environments import environment_of
from cluster.config.run_config import RunConfig
from envs.config import IsolationConfig, ToolServerConfig
from envs.errors import DataFileError
from envs.gateway.gateway_host import InProcessTools
from envs.server.replay_host import ReplayHost
from envs.services.replayed import ReplayedTools
from envs.tasks import Task
from envs.tasksets.file.config import FileEnvConfig
from rollout.chat.template import ChatTemplate
from rollout.episode import Outcome
from rollout.episode_difference import first_difference
from tests.rollout.own_world import TRIAL, Row, answer, call, play, real_tools

INTEROP = Path(__file__).resolve().parents[2] / ".venv-interop" / "bin"
SERVER = Path(__file__).resolve().parents[1] / "envs" / "remote" / "foreign_openenv.py"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (INTEROP / "python").is_file(), reason="needs `make interop`"),
]


@asynccontextmanager
async def served(*command: str, cwd: Path | None = None) -> AsyncIterator[str]:
    """Run a server that prints its port; yield its address."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=cwd
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(120):
            port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def tasks_of(folder: Path, *rows: Row, config: ToolServerConfig | None = None) -> list[Task]:
    texts = (json.dumps({"id": str(n), **row}) for n, row in enumerate(rows))
    (folder / "tasks.jsonl").write_text("\n".join(texts))
    env = FileEnvConfig(path=str(folder))
    return list(environment_of(RunConfig(env=env, tools=config or ToolServerConfig())).all_tasks())


def guess(number: int) -> str:
    return call("step", number=number)


async def test_a_game_is_played_to_its_own_end(template: ChatTemplate, tmp_path: Path) -> None:
    record = tmp_path / "record"
    config = ToolServerConfig(
        isolation=IsolationConfig(required="seccomp"), record=True, record_dir=str(record)
    )
    async with served(str(INTEROP / "python"), str(SERVER)) as url:
        world = {"url": f"{url}/plain", "world": True}
        place: Row = {"openenv": {**world, "reset": {"seed": 5}}}
        task, seeded = tasks_of(
            tmp_path,
            {"question": "Find the number.", "tools": place},
            {"tools": {"openenv": world}},
        )
        assert task.question == "Find the number.\n\nguess", "the reset's observation"
        assert seeded.question == "guess"
        endpoint = seeded.tool_set.endpoint
        assert endpoint is not None
        assert set(endpoint.model_dump()["reset"]) == {"seed"}, "all episodes start alike"
        right = random.Random(5).randint(1, 9)
        wrong = right % 9 + 1
        turns = [guess(wrong), guess(right), guess(right), answer("never said")]
        async with real_tools(config) as tools:
            won = await play(tools, template, task, turns)
            lost = await play(tools, template, task, [guess(wrong), answer(right)], seed=8)
            idle = await play(tools, template, task, [answer(right)], seed=9)
            # the trial wins, and ends its session; execution starts from the beginning
            trial = [guess(right), guess(wrong), "<experience>.</experience>", answer(right)]
            tried = await play(tools, template, task, trial, TRIAL, seed=10)
            after = [guess(right), "<experience>.</experience>", guess(right)]
            both = await play(tools, template, task, after, TRIAL, seed=11)
    assert (won.outcome, won.reward, len(won.turns), won.answer) == (Outcome.ANSWERED, 1.0, 2, "")
    assert won.calls[1].result == "right #2"
    assert (lost.outcome, lost.reward) == (Outcome.ANSWERED, 0.0)
    assert (idle.reward, tried.reward, both.reward) == (0.0, 0.0, 1.0)
    assert tried.calls[0].result.startswith("right")
    assert tried.calls[1].result.endswith("#1"), "another trial, from the start"
    for episode in (won, lost, tried):
        assert not any("reward" in message.content for message in episode.messages)
    host = ReplayHost(record)
    await host.start()
    again = await play(ReplayedTools(InProcessTools(host)), template, task, turns)
    await host.stop()
    assert first_difference(won, again) is None, again.error


async def test_tools_of_a_world_and_how_rewards_add_up(
    template: ChatTemplate, tmp_path: Path
) -> None:
    async with served(str(INTEROP / "python"), str(SERVER)) as url:
        tools_row: Row = {"openenv": {"url": f"{url}/tools/", "world": True}}
        rows: list[Row] = [
            {"question": "Put.", "tools": tools_row, "scorers": [{"environment": total}]}
            for total in ("sum", "last", "max")
        ]
        function = {"functions": "own.py"}
        (tmp_path / "own.py").write_text("LOG = []\ndef note(x: int): LOG.append(x)")
        (tmp_path / "reward.py").write_text(
            "def score(state): return float(state['own']['LOG'] == [1])"
        )
        rows.append(
            {
                "question": "Both.",
                "tools": [tools_row, function],
                "scorers": [{"environment": "sum"}, {"function": "reward.py"}],
            }
        )
        tasks = tasks_of(tmp_path, *rows)
        turns = [call("put", thing="a"), call("put"), call("put", thing="b"), answer("x")]
        async with real_tools() as tools:
            episodes = [await play(tools, template, task, turns) for task in tasks[:3]]
            composed = await play(tools, template, tasks[3], [call("note", x=1), *turns])
        assert [episode.reward for episode in episodes] == [1.0, 0.5, 0.5]
        assert [c.result for c in episodes[0].calls] == ['["a"]', "thing: required", '["a", "b"]']
        assert composed.error == ""
        assert composed.reward_parts["environment"] == composed.reward_parts["function"] == 1.0
        with pytest.raises(DataFileError, match="OpenEnv environment with `world`"):
            tasks_of(
                tmp_path, {"question": "?", "tools": function, "scorers": [{"environment": "sum"}]}
            )
        with pytest.raises(DataFileError, match="expected a `question`"):
            tasks_of(tmp_path, {"tools": function, "answer": "x"})


async def test_the_example_environment_of_openenv_itself(
    template: ChatTemplate, tmp_path: Path
) -> None:
    """`openenv init` writes the package's own example: it echoes, and rewards long messages."""
    made = subprocess.run(
        [str(INTEROP / "openenv"), "init", "parrot"], cwd=tmp_path, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr + made.stdout
    app = tmp_path / "parrot" / "server" / "app.py"
    room = app.read_text().replace("max_concurrent_envs=1,", "max_concurrent_envs=2,")
    assert room != app.read_text(), "gold calls need a second session"
    app.write_text(room)
    start = (
        "import socket, sys, uvicorn\n"
        "sys.path.insert(0, '.')\n"
        "from server.app import app\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "print(listener.getsockname()[1], flush=True)\n"
        "uvicorn.Server(uvicorn.Config(app, log_level='warning')).run([listener])\n"
    )
    async with served(str(INTEROP / "python"), "-c", start, cwd=tmp_path / "parrot") as url:
        place: Row = {"openenv": {"url": url, "world": True}}
        gold = [{"name": "step", "arguments": {"message": text}} for text in ("hi", "ho")]
        task, twin = tasks_of(
            tmp_path,
            {"question": "Say hello.", "tools": place},
            {"question": "?", "tools": place, "scorers": [{"gold": gold}]},
        )
        assert task.question.startswith("Say hello.\n\n")
        assert "environment ready" in task.question
        async with real_tools() as tools:
            turns = [call("step", message="hello"), call("step", message="you"), answer("said")]
            episode = await play(tools, template, task, turns)
            as_gold = await play(tools, template, twin, turns, seed=8)
            less = await play(tools, template, twin, turns[1:], seed=9)
    assert (as_gold.reward, less.reward) == (1.0, 0.0), as_gold.error
    assert episode.outcome is Outcome.ANSWERED
    assert episode.reward == pytest.approx(0.8), "0.1 for each letter"
