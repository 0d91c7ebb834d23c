"""The world that docs/environments.md builds: its files, played in a real sandbox."""

import json
import re
from pathlib import Path

from envs.gateway.gateway_host import InProcessTools
from envs.server.tool_host import ToolHost
from envs.services.router import ToolRouter
from envs.tasksets.file.config import FileEnvConfig
from envs.tasksets.file.environment import FileEnvironment
from learner.pretrained.tiny_model import build_tokenizer
from rollout.chat.template import ChatTemplate
from tests.project_tree import ROOT
from tests.rollout.own_world import TOOLS, answer, call, nowhere, play

PAGE = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
_FILE = re.compile(r"`mine/(?P<name>[a-z.]+)`[^\n]*\n\n```\w+\n(?P<text>.*?)^```$", re.M | re.S)


async def test_the_page_builds_a_world_with_a_reward_of_its_own(tmp_path: Path) -> None:
    files = {found["name"]: found["text"] for found in _FILE.finditer(PAGE)}
    assert sorted(files) == ["reward.py", "tasks.jsonl", "tools.py", "turns.json"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    tasks = FileEnvironment(FileEnvConfig(path=str(tmp_path)), nowhere()).all_tasks()
    assert len(tasks) == 5
    host = ToolHost(TOOLS)
    await host.start()
    tools = ToolRouter(InProcessTools(host), TOOLS, {})
    template = ChatTemplate(build_tokenizer())
    fruit = call("put", item="apple", count=2)
    right = await play(tools, template, tasks[0], [fruit, call("total"), answer("It is 6.")])
    shown = [
        turn if isinstance(turn, str) else call(turn["name"], **turn["arguments"])
        for turn in json.loads(files["turns.json"])["1"]
    ]
    assert (await play(tools, template, tasks[0], shown)).reward == 1.0
    partly = await play(tools, template, tasks[0], [fruit, answer(7)])
    guessed = await play(tools, template, tasks[0], [answer(6)])
    await tools.close()
    await host.stop()
    rewards = [episode.reward for episode in (right, partly, guessed)]
    assert [round(reward or 0, 6) for reward in rewards] == [1.0, 0.7, 0.3], right.error
    assert right.reward_parts["function.basket"] == 0.5
