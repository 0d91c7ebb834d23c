"""A task set in Python: three functions as tools, five questions, one episode in the sandbox.

`python examples/task_set.py [FOLDER]` writes the task set to FOLDER and runs an episode; a script
stands in for the model. With a model: `trialrun eval file --set env.path=FOLDER`."""

import asyncio
import json
import sys
from pathlib import Path
from tempfile import mkdtemp

from cluster.config.environments import make_environment
from envs.config import ToolServerConfig
from envs.server.client import ToolClient
from envs.server.process import ToolServerProcess
from envs.tasksets.file.config import FileEnvConfig
from learner.pretrained.tiny_model import build_tokenizer
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Lease, RolloutKind
from rollout.runner import EpisodeRunner, Identity

TOOLS = """
def area(a: int, b: int) -> int:
    "Measure a floor."
    return a * b
def feet(metres: float) -> float:
    "Measure a length."
    return round(metres * 3.28, 2)
def price(item: str) -> int:
    "Look up an item."
    return {"tile": 4, "plank": 7}[item]
"""
QUESTIONS = {"Area, 6 by 7?": 42, "A tile?": 4, "A plank?": 7, "2 m in feet?": 6.56, "5 m?": 16.4}
ROW = {"split": "train", "scorer": "numeric", "tools": {"functions": "tools.py"}}
CALL = '<tool_call>{"name": "area", "arguments": {"a": 6, "b": 7}}</tool_call>'
TURNS = iter((CALL, "<experience>area = a * b</experience>", CALL, "<answer>42</answer>"))


async def main(folder: Path) -> None:
    (folder / "tools.py").write_text(TOOLS)
    rows = [{"id": q, "question": q, "answer": a, **ROW} for q, a in QUESTIONS.items()]
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = make_environment(FileEnvConfig(path=str(folder))).all_tasks()[0]
    template, tools = ChatTemplate(build_tokenizer()), ToolServerConfig()
    with ToolServerProcess(tools) as server:
        client = ToolClient(server.address, tools)
        engine = ScriptedEngine(lambda messages, seed: next(TURNS), template)
        runner = EpisodeRunner(engine, client, template, Identity(worker="example"))
        ids = {"run": "example", "episode": "e0", "group": "g0", "task": task.id}
        numbers = {"group_number": 0, "sample_index": 0, "attempt": 0, "seed": 7}
        lease = Lease(kind=RolloutKind.TRAIN, **ids, **numbers)
        episode = await runner.run_episode(lease, task, EpisodeConfig(prompt="compact"))
        await client.close()
    print(*(f"{message.role}: {message.content}" for message in episode.messages), sep="\n")
    print(f"{episode.outcome}, reward {episode.reward}, isolation {episode.isolation}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if sys.argv[1:] else mkdtemp())))
