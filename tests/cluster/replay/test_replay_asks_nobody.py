"""A replay starts no server and runs no code of the run: tools are those of the record."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import RunConfig, load_config
from cluster.lifecycle.inputs import RunInputs, resolve_inputs
from cluster.lifecycle.opening import Resume, open_run
from cluster.progress import QUIET
from cluster.replay.replay_episodes import replay_run
from cluster.scheduling.schedule import GroupPlan
from cluster.scheduling.task_sources import training_tasks
from envs.errors import ConfigError
from envs.messages import Message
from envs.services.router import ToolRouter
from envs.services.scripted import ScriptedTools
from envs.tools import AnswerStatus, ToolAnswer
from learner.pretrained.tiny_model import build_tiny_model
from rollout.chat.template import ChatTemplate
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Episode, RolloutKind
from rollout.episode_schema import to_batch
from rollout.runner import EpisodeRunner, Identity
from rollout.store.run_layout import RunKind

SERVER = '''
import sys
from pathlib import Path
from mcp.server.mcpserver import MCPServer

Path(__file__).with_name("STARTED").touch()
server = MCPServer("shop")

@server.tool()
def order_status(number: str) -> str:
    """Tell the status of an order."""
    return f"order {number} is pending"

@server.tool()
def secret(number: str) -> str:
    """Not wanted."""
    return number

server.run("stdio")
'''
SCORER = """
def score(answer):
    open(__file__ + ".RAN", "w").close()
    return 1.0
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny", 0)


def turns() -> list[str]:
    called = json.dumps({"name": "order_status", "arguments": {"number": "17"}})
    call = f"<tool_call>{called}</tool_call>"
    return [call, "<experience>it tells</experience>", call, "<answer>pending</answer>"]


def recipe(folder: Path, model: Path, *values: str) -> RunConfig:
    """Write tasks on an MCP server, one of them never played, and return their recipe."""
    (folder / "server.py").write_text(SERVER)
    mcp = {"command": [sys.executable, "server.py"]}
    row = {
        "id": "t",
        "split": "train",
        "question": "What is 17?",
        "answer": "pending",
        "tools": {"mcp": mcp, "exclude": ["secret"]},
    }
    (folder / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    given = [
        f'run.dir="{folder}"',
        "run.name=r",
        f'model.path="{model}"',
        f'env.path="{folder}"',
        "tools.record=true",
        "tools.request_timeout_s=60",
        "episode.prompt=compact",
        "model.max_model_len=1024",
        "episode.max_tokens_per_turn=256",
        *values,
    ]
    return load_config("file", given)


async def play(inputs: RunInputs) -> Episode:
    config = inputs.config
    task = training_tasks(config, inputs.environment)[0]
    plan = GroupPlan(kind=RolloutKind.TRAIN, seed=config.run.seed, samples=1)
    (lease,) = plan.leases("r", 0, task.id)
    template = ChatTemplate.load(inputs.model, config.model)

    def reply(messages: Sequence[Message], seed: int) -> str:
        del seed
        return turns()[sum(message.role == "assistant" for message in messages)]

    nothing = ScriptedTools(lambda *_: ToolAnswer(status=AnswerStatus.OK, text="", seconds=0.0))
    tools = ToolRouter(nothing, config.tools, {"PATH": os.environ["PATH"]})
    identity = Identity(
        worker="w",
        max_model_len=config.model.max_model_len,
        tool_format=config.model.tool_format,
    )
    runner = EpisodeRunner(ScriptedEngine(reply, template), tools, template, identity)
    episode = await runner.run_episode(lease, task, config.episode)
    await tools.close()
    return episode


def played(config: RunConfig) -> Path:
    """Play the first training task on its real server, and store and record that as a run does."""
    inputs = resolve_inputs(config)
    with open_run(RunKind.TRAIN, config.path, inputs.config, Resume.NO, QUIET) as run:
        record = {"record_dir": str(run.layout.tool_traffic)}
        tools = inputs.config.tools.model_copy(update=record)
        section = inputs.config.model_copy(update={"tools": tools})
        at = RunInputs(section, inputs.model, inputs.environment)
        run.append(to_batch([asyncio.run(play(at))]))
    return config.path


@pytest.mark.parametrize("own", [True, False], ids=["own", "of somebody else"])
def test_tools_of_a_server_are_those_of_the_record(
    own: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = played(recipe(tmp_path, model))
    started = tmp_path / "STARTED"
    assert started.exists()
    started.unlink()
    if not own:  # as `tar` leaves it, with the tasks inside
        monkeypatch.setenv("TRIALRUN_KEY_FILE", str(tmp_path / "other"))
        (path / "tasks.jsonl").write_bytes((tmp_path / "tasks.jsonl").read_bytes())
        text = (path / "config.toml").read_text()
        text = text.replace(f'path = "{tmp_path}"', f'path = "{path}"')
        (path / "config.toml").write_text(text)
    report = asyncio.run(replay_run(path, None))
    assert not started.exists(), "the server of the run was started"
    assert len(report.replays) == 1
    if own:  # the folder of a server is a part of what its sessions are found by
        assert report.different == []


def test_a_trusted_scorer_is_not_run(model: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(SCORER)
    scorer: Any = {"function": "reward.py:score", "trusted": True}
    config = recipe(tmp_path, model, "env.trusted_scorers=true")
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps(json.loads(tasks.read_text()) | {"scorers": [scorer]}) + "\n")
    path = played(config)
    ran = tmp_path / "reward.py.RAN"
    assert ran.exists()
    ran.unlink()
    report = asyncio.run(replay_run(path, None))
    assert not ran.exists()
    assert (len(report.replays), report.different) == (1, [])


def test_a_module_of_somebody_else_is_not_imported(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_world.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = played(recipe(tmp_path, model))
    text = (path / "config.toml").read_text()
    (path / "config.toml").write_text(text.replace('name = "file"', 'name = "evil_world:World"'))
    with pytest.raises(ConfigError, match=r"env\.name.*imports a module.*--trust-run"):
        asyncio.run(replay_run(path, None))
