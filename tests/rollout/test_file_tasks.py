"""Episodes on a user's own tasks whose tools are a foreign server's."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.config.environments import make_environment
from envs.config import ToolServerConfig
from envs.messages import Message
from envs.services.router import ToolRouter
from envs.services.scripted import ScriptedTools
from envs.tasksets.file.config import FileEnvConfig
from envs.tools import AnswerStatus, ToolAnswer
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Lease, Outcome, RolloutKind
from rollout.runner import EpisodeRunner, Identity

SERVER = Path(__file__).resolve().parent.parent / "envs" / "remote" / "raw_mcp_server.py"
COUNT = '<tool_call>{"name": "count", "arguments": {}}</tool_call>'
TURNS = (COUNT, COUNT, "<experience>it counts</experience>", COUNT, "<answer>1</answer>")


def reply(messages: Sequence[Message], seed: int) -> str:
    return TURNS[sum(message.role == "assistant" for message in messages)]


async def test_a_trial_on_a_foreign_server_leaves_execution_clean(
    template: ChatTemplate, tmp_path: Path
) -> None:
    row = {
        "id": "count",
        "split": "train",
        "question": "Count once. What is the count?",
        "answer": 1,
        "scorer": "numeric",
        "tools": {"mcp": {"command": [sys.executable, "-I", str(SERVER)]}},
    }
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row))
    environment = make_environment(FileEnvConfig(path=str(tmp_path)))
    task = environment.tasks("train", 0, 1)[0]
    nothing = ScriptedTools(lambda *_: ToolAnswer(status=AnswerStatus.OK, text="", seconds=0.0))
    tools = ToolRouter(nothing, ToolServerConfig(), {})
    identity = Identity(worker="unit", max_model_len=16_384)
    runner = EpisodeRunner(ScriptedEngine(reply, template), tools, template, identity)
    lease = Lease(
        run="run",
        episode="e1",
        kind=RolloutKind.TRAIN,
        group="g1",
        group_number=1,
        task=task.id,
        sample_index=0,
        attempt=0,
        seed=7,
    )
    episode = await runner.run_episode(lease, task, EpisodeConfig())

    assert (episode.outcome, episode.reward) == (Outcome.ANSWERED, 1.0)
    assert [call.result for call in episode.calls] == ["1", "2", "1"]
    assert episode.isolation == "outside (mcp-stdio, shared)"
