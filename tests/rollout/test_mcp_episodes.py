"""Episodes on MCP servers: trials leave no trace where a session has its own folder, new tools are
told, and a record replays them.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config.environments import environment_of
from cluster.config.run_config import RunConfig
from envs.config import ToolServerConfig
from envs.errors import ToolServerError
from envs.gateway.gateway_host import InProcessTools
from envs.messages import Message
from envs.perturbation.perturb import perturb
from envs.server.replay_host import ReplayHost
from envs.services.router import ToolRouter
from envs.services.scripted import ScriptedTools
from envs.tasks import Task
from envs.tasksets.file.config import FileEnvConfig
from envs.tools import AnswerStatus, JsonObject, ToolAnswer, ToolService
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Episode, Lease, Outcome, RolloutKind
from rollout.runner import EpisodeRunner, Identity

REMOTE = Path(__file__).resolve().parent.parent / "envs" / "remote"
SHOP = '''
import json, sys
from pathlib import Path
from mcp.server.mcpserver import MCPServer

orders = Path(sys.argv[1])
server = MCPServer("shop")

@server.tool()
def cancel_order(number: str) -> str:
    """Cancel an order."""
    state = json.loads(orders.read_text())
    state[number] = "cancelled"
    orders.write_text(json.dumps(state))
    return "cancelled"

@server.tool()
def order_status(number: str) -> str:
    """Tell the status of an order."""
    return json.loads(orders.read_text())[number]

server.run("stdio")
'''


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def task_in(folder: Path, mcp: JsonObject, **chosen: list[str]) -> Task:
    row = {
        "id": "t",
        "split": "train",
        "question": "q",
        "answer": "pending",
        "tools": {"mcp": mcp, **chosen},
    }
    (folder / "tasks.jsonl").write_text(json.dumps(row))
    config = ToolServerConfig(request_timeout_s=60.0)
    return environment_of(RunConfig(env=FileEnvConfig(path=str(folder)), tools=config)).tasks(
        "train", 0, 1
    )[0]


def routed(config: ToolServerConfig) -> ToolService:
    nothing = ScriptedTools(lambda *_: ToolAnswer(status=AnswerStatus.OK, text="", seconds=0.0))
    return ToolRouter(nothing, config, {"PATH": os.environ["PATH"]})


async def play(
    template: ChatTemplate,
    task: Task,
    turns: Sequence[str],
    count: int = 1,
    config: EpisodeConfig | None = None,
    tools: ToolService | None = None,
) -> list[Episode]:
    def reply(messages: Sequence[Message], seed: int) -> str:
        del seed
        return turns[sum(message.role == "assistant" for message in messages)]

    tools = tools or routed(ToolServerConfig(request_timeout_s=60.0, call_timeout_s=30.0))
    identity = Identity(worker="unit", max_model_len=32_768)
    runner = EpisodeRunner(ScriptedEngine(reply, template), tools, template, identity)
    leases = [
        Lease(
            run="run",
            episode=f"e{number}",
            kind=RolloutKind.TRAIN,
            group="g1",
            group_number=1,
            task=task.id,
            sample_index=number,
            attempt=0,
            seed=number,
        )
        for number in range(count)
    ]
    playing = (runner.run_episode(lease, task, config or EpisodeConfig()) for lease in leases)
    episodes = await asyncio.gather(*playing)
    await tools.close()
    return episodes


def results(episode: Episode) -> list[str]:
    return [called.result for called in episode.calls]


# Trials that leave no trace

TRIAL = (call("cancel"), call("status"), "<experience>it cancels</experience>", call("status"))


async def test_a_trial_that_cancels_an_order_leaves_it_to_execution(
    template: ChatTemplate, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "orders.json").write_text('{"17": "pending"}')
    turns = (
        call("cancel_order", number="17"),
        call("order_status", number="17"),
        "<experience>it cancels</experience>",
        call("order_status", number="17"),
        "<answer>pending</answer>",
    )
    command = [sys.executable, "shop.py"]
    shared = task_in(tmp_path, {"command": [*command, "orders.json"]})
    (leaky,) = await play(template, shared, turns)
    assert results(leaky) == ["cancelled", "cancelled", "cancelled"]  # what this is all about
    assert leaky.isolation == "outside (mcp-stdio, shared)"

    (tmp_path / "orders.json").write_text('{"17": "pending"}')
    before = set(Path(tempfile.gettempdir()).glob("trialrun-mcp-*"))
    own = task_in(
        tmp_path,
        {
            "command": [*command, "{scratch}/orders.json"],
            "start": ["cp", "orders.json", "{scratch}/orders.json"],
        },
    )
    (clean,) = await play(template, own, turns)
    assert results(clean) == ["cancelled", "cancelled", "pending"]
    assert clean.isolation == "outside (mcp-stdio, scratch)"
    assert (clean.outcome, clean.reward) == (Outcome.ANSWERED, 1.0)
    assert json.loads((tmp_path / "orders.json").read_text()) == {"17": "pending"}
    assert set(Path(tempfile.gettempdir()).glob("trialrun-mcp-*")) <= before


async def test_eight_episodes_at_once_see_nothing_of_each_other(
    template: ChatTemplate, tmp_path: Path
) -> None:
    shutil.copy(REMOTE / "odd_mcp_server.py", tmp_path)
    (tmp_path / "order").write_text("pending")
    server = [sys.executable, "-I", str(tmp_path / "odd_mcp_server.py"), "orders"]
    place: JsonObject = {
        "command": ["sh", "-c", 'exec "$@" "$ORDER"', "sh", *server],
        "environment": {"ORDER": "{scratch}/order"},
        "start": ["cp", "order", "{scratch}/order"],
    }
    turns = (*TRIAL, call("cancel"), "<answer>pending</answer>")
    episodes = await play(template, task_in(tmp_path, place), turns, count=8)
    seen = {tuple(results(episode)) for episode in episodes}
    assert seen == {("cancelled", "cancelled", "pending", "cancelled")}


async def test_a_start_command_that_fails_says_why(tmp_path: Path) -> None:
    place: JsonObject = {
        "command": [sys.executable, "-I", str(REMOTE / "odd_mcp_server.py"), "orders", "{scratch}"],
        "start": ["sh", "-c", "echo no seed here >&2; exit 4"],
    }
    with pytest.raises(ToolServerError, match="exit code 4; it said last: no seed here"):
        task_in(tmp_path, place)


# Tools that come and go

GROWING: JsonObject = {
    "command": [sys.executable, "-I", str(REMOTE / "odd_mcp_server.py"), "growing"]
}
GROWS = (
    call("login"),
    call("secret"),
    "<experience>log in first</experience>",
    call("secret"),
    call("login"),
    call("secret"),
    "<answer>pending</answer>",
)


async def test_a_new_tool_is_told_and_can_be_called(template: ChatTemplate, tmp_path: Path) -> None:
    (episode,) = await play(template, task_in(tmp_path, GROWING), GROWS)
    assert [turn.policy_error for turn in episode.turns] == ["", "", "", "unknown_tool", "", "", ""]
    assert results(episode) == ["did login", "42", "did login", "42"]
    told = [m.content for m in episode.messages if "The tools have changed" in m.content]
    assert len(told) == 3  # it comes in the trials, is gone in the execution, and comes again
    assert '"name": "secret"' in told[0]
    assert "cannot be called any more: secret" in told[1]
    assert told[2] == told[0]
    assert "Log in before anything else." in episode.messages[0].content


async def test_a_record_replays_new_tools(template: ChatTemplate, tmp_path: Path) -> None:
    task, traffic = task_in(tmp_path, GROWING), tmp_path / "traffic"
    recording = ToolServerConfig(record=True, record_dir=str(traffic))
    (first,) = await play(template, task, GROWS, tools=routed(recording))
    host = ReplayHost(traffic)
    await host.start()
    (again,) = await play(template, task, GROWS, tools=InProcessTools(host))
    await host.stop()
    assert again.messages == first.messages
    assert results(again) == results(first)
    assert again.token_ids_T == first.token_ids_T


async def test_what_the_user_leaves_out_never_comes(template: ChatTemplate, tmp_path: Path) -> None:
    task = task_in(tmp_path, GROWING, include=["log*"], exclude=["logout"])
    assert [tool.name for tool in task.tool_set.tools] == ["login"]
    turns = (call("login"), call("secret"), call("logout"), "<answer>pending</answer>")
    config = EpisodeConfig(mode="direct")
    (episode,) = await play(template, task, turns, config=config)
    assert [turn.policy_error for turn in episode.turns] == ["", "unknown_tool", "unknown_tool", ""]


async def test_shared_trials_keep_their_tools(template: ChatTemplate, tmp_path: Path) -> None:
    config = EpisodeConfig(trial_sessions="shared", prompt="compact")
    turns = (*GROWS[:4], "<answer>pending</answer>")
    (episode,) = await play(template, task_in(tmp_path, GROWING), turns, config=config)
    assert results(episode) == ["did login", "42", "42"]


async def test_new_tools_of_a_perturbed_set_keep_their_names(
    template: ChatTemplate, tmp_path: Path
) -> None:
    task = task_in(tmp_path, GROWING)
    tool_set = perturb(task.tool_set, "union", 5)
    assert tool_set.instructions == task.tool_set.instructions
    assert tool_set.adaptation is not None
    calm = tool_set.adaptation.model_copy(update={"fault_rate": 0.0, "slow_rate": 0.0})
    tool_set = tool_set.model_copy(update={"adaptation": calm})
    tool, rule = next(
        (tool, rule)
        for tool, rule in zip(tool_set.tools, calm.rules, strict=True)
        if rule.target == "login"
    )
    arguments = {name: "x" for name in rule.parameters}
    turns = (call(tool.name, **arguments), call("secret"), "<answer>pending</answer>")
    config = EpisodeConfig(mode="direct")
    (episode,) = await play(template, replace(task, tool_set=tool_set), turns, config=config)
    assert results(episode) == ["did login", "42"]
