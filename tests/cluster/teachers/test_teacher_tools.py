"""A teacher has the tools of every source, as the policy has them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.config.environments import environment_of
from cluster.config.run_config import RunConfig
from cluster.lifecycle.inputs import RunInputs
from cluster.teachers.teacher import ScriptedTeacher, open_host
from envs.example_arguments import example_arguments
from envs.messages import Message
from envs.tasks import Task
from rollout.config import EpisodeConfig
from rollout.episode import Episode, Lease, Outcome, RolloutKind
from rollout.episode_schema import from_batch
from tests.rollout.conftest import make_tokenizer

ODD = Path(__file__).resolve().parents[2] / "envs" / "remote" / "odd_mcp_server.py"
LIBRARY = ODD.parents[1] / "documents" / "library.json"
SOURCES = {
    "functions": {"functions": "tools.py"},
    "mcp": {"mcp": {"command": [sys.executable, "-I", str(ODD), "growing"]}},
    "openapi": {"openapi": "library.json"},
}


def first_call(task: Task) -> str:
    tool = task.tool_set.tools[0]
    return json.dumps({"name": tool.name, "arguments": example_arguments(tool)})


async def played(inputs: RunInputs, task: Task, path: Path) -> Episode:
    turns = (f"<tool_call>{first_call(task)}</tool_call>", "<answer>a</answer>")

    def reply(messages: Sequence[Message], seed: int) -> str:
        del seed
        return turns[sum(message.role == "assistant" for message in messages)]

    lease = Lease(
        run="run",
        episode="e0",
        kind=RolloutKind.COLLECT,
        group="t000000",
        group_number=0,
        task=task.id,
        sample_index=0,
        attempt=0,
        seed=1,
    )
    async with open_host(inputs, path) as host:
        teacher = ScriptedTeacher(host, reply, lambda seed, calls: calls)
        batch, _ = await teacher.run_episode(lease, task, EpisodeConfig(mode="direct"))
    return from_batch(batch)[0]


@pytest.mark.parametrize("perturbation", ["clean", "slight"])
async def test_a_teacher_calls_tools_of_every_source(tmp_path: Path, perturbation: str) -> None:
    (tmp_path / "tools.py").write_text('def add(a: int) -> int:\n    """Add."""\n    return a\n')
    (tmp_path / "library.json").write_text(LIBRARY.read_text())
    rows = (
        {"id": name, "question": "q", "answer": "a", "split": "train", "tools": tools}
        for name, tools in SOURCES.items()
    )
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make_tokenizer().save_pretrained(tmp_path / "model")
    section = {"name": "file", "path": str(tmp_path), "perturbation": perturbation}
    config = RunConfig.model_validate({"env": section, "model": {"max_model_len": 100_000}})
    inputs = RunInputs(config, tmp_path / "model", environment_of(config))
    for task in inputs.environment.all_tasks():
        episode = await played(inputs, task, tmp_path / "run")
        assert (episode.outcome, episode.error) == (Outcome.ANSWERED, "")
        assert len(episode.calls) == 1
