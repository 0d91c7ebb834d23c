"""Scorers and users of tasks that are served to others: the same as in our own episodes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from envs.gateway.gateway_host import GatewayHost
from envs.gateway.openenv_episode import OpenEnvEpisode, TaskPool
from envs.remote.openenv_wire import AnswerAction, CallToolAction, ResetOptions, StepResult
from envs.server.tool_host import ToolHost
from envs.tasks import Task
from envs.tools import JsonObject
from tests.rollout.own_world import TOOLS, Row, tasks_in


@pytest_asyncio.fixture
async def host() -> AsyncIterator[GatewayHost]:
    made = GatewayHost(ToolHost(TOOLS), TOOLS, {})
    await made.start()
    yield made
    await made.stop()


async def played(host: GatewayHost, task: Task, *steps: str | JsonObject) -> list[StepResult]:
    episode = OpenEnvEpisode(host, TaskPool([task]), TOOLS)
    await episode.reset(ResetOptions(seed=3))
    results: list[StepResult] = []
    for step in steps:
        action = (
            AnswerAction(type="answer", text=step)
            if isinstance(step, str)
            else CallToolAction(type="call_tool", tool_name="put", arguments=step)
        )
        results.append(await episode.step(action))
    episode.close()
    return results


async def test_a_served_task_is_scored_by_state_after_all_messages(
    host: GatewayHost, tmp_path: Path
) -> None:
    (tmp_path / "bag.py").write_text(
        "class Bag:\n    def __init__(self): self.things = []\n"
        "    def put(self, thing: str) -> int:\n"
        "        self.things.append(thing)\n        return len(self.things)\n"
    )
    gold = [[{"name": "put", "arguments": {"thing": thing}}] for thing in "ab"]
    row: Row = {
        "question": "Put a.",
        "tools": {"python": "bag.py"},
        "user": {"says": ["Put b."]},
        "scorers": [{"gold": gold}],
    }
    [task] = tasks_in(tmp_path, [row])
    right = await played(host, task, {"thing": "a"}, "done", {"thing": "b"}, "done")
    assert [result.done for result in right] == [False, False, False, True]
    asked = right[1].observation
    assert asked.model_dump()["question"] == "Put b."
    assert right[-1].reward == 1.0
    assert right[-1].metadata == {"reward_parts": {"gold": 1.0, "gold.turns": 1.0}}
    wrong = await played(host, task, "done", {"thing": "a"}, {"thing": "b"}, "done")
    assert wrong[-1].reward == 0.0
    assert (await host.health()).sessions == 0
