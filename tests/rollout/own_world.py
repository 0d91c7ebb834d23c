"""Episodes on a task file in a folder: scripted turns, the real runner and a real sandbox."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from envs.config import (
    EnvConfig,
    IsolationConfig,
    JudgeConfig,
    PerturbationLevel,
    SimulatedUserConfig,
    ToolServerConfig,
)
from envs.gateway.gateway_host import InProcessTools
from envs.messages import Message
from envs.perturbation.perturb import PerturbedEnvironment
from envs.server.tool_host import ToolHost
from envs.server.traffic import recorder_for
from envs.services.router import ToolRouter
from envs.tasks import Task
from envs.tasksets.file.config import FileEnvConfig
from envs.tasksets.outside import Outside
from envs.tasksets.registry import create_environment
from envs.tools import ToolService, ToolSet
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig, PhaseBudget
from rollout.engines.scripted_engine import ScriptedEngine
from rollout.episode import Episode, Lease, RolloutKind
from rollout.runner import EpisodeRunner, Identity

TOOLS = ToolServerConfig(isolation=IsolationConfig(required="seccomp"), call_timeout_s=5)
Row = dict[str, Any]
"""A line of a task file."""
_BUDGET = PhaseBudget(calls=64, turns=80, tokens=1_000_000, seconds=300.0)
DIRECT = EpisodeConfig(
    mode="direct",
    trial=_BUDGET,
    execution=_BUDGET,
    max_tokens_per_turn=10_000,
    max_policy_errors=64,
)
TRIAL = DIRECT.model_copy(update={"mode": "trial"})


def call(name: str, /, **arguments: object) -> str:
    """Return a turn that calls a tool."""
    text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{text}\n</tool_call>"


def answer(text: object) -> str:
    """Return a turn that answers."""
    return f"<answer>{text}</answer>"


def no_servers(endpoint: object) -> ToolSet:
    raise AssertionError(f"asked {endpoint}")


def nowhere() -> Outside:
    """Return a world without servers and models."""
    return Outside(list_tools=no_servers)


def tasks_in(
    folder: Path,
    rows: Sequence[Row],
    *,
    level: PerturbationLevel = "clean",
    judge: JudgeConfig | None = None,
    user: SimulatedUserConfig | None = None,
    **keys: object,
) -> list[Task]:
    """Return the tasks of `rows`, written to `folder`; `keys` are those of `[env]`."""
    texts = (json.dumps({"id": str(n), "question": "?", **row}) for n, row in enumerate(rows))
    (folder / "tasks.jsonl").write_text("\n".join(texts))
    config: EnvConfig = FileEnvConfig.model_validate({"path": str(folder), **keys})
    outside = Outside(
        list_tools=no_servers,
        judge=judge or JudgeConfig(),
        simulated_user=user or SimulatedUserConfig(),
    )
    environment = create_environment(config, outside)
    if level != "clean":
        environment = PerturbedEnvironment(environment, level, 3)
    return list(environment.all_tasks())


@asynccontextmanager
async def real_tools(
    config: ToolServerConfig = TOOLS, variables: Mapping[str, str] | None = None
) -> AsyncIterator[ToolService]:
    """Tools of every kind, Python ones in a sandbox of this process."""
    recorder = recorder_for(config)
    host = ToolHost(config, observers=[recorder] if recorder else [])
    await host.start()
    router = ToolRouter(InProcessTools(host), config, variables or {})
    try:
        yield router
    finally:
        await router.close()
        await host.stop()
        if recorder:
            recorder.close()


async def play(
    tools: ToolService,
    template: ChatTemplate,
    task: Task,
    turns: Sequence[str],
    config: EpisodeConfig = DIRECT,
    seed: int = 7,
) -> Episode:
    """Return the episode of a policy that takes these turns."""

    def reply(messages: Sequence[Message], seed: int) -> str:
        return turns[min(sum(m.role == "assistant" for m in messages), len(turns) - 1)]

    identity = Identity(worker="unit", max_model_len=1_000_000)
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
        seed=seed,
    )
    return await runner.run_episode(lease, task, config)
