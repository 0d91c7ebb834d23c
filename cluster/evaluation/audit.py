"""`trialrun audit`: checks which tools of a ToolHop file run and what they return."""

import asyncio

from cluster.config.run_config import RunConfig
from envs.errors import ConfigError
from envs.server.client import ToolClient
from envs.server.process import ToolServerProcess
from envs.tasksets.toolhop.audit import Audit, audit
from envs.tasksets.toolhop.config import ToolHopEnvConfig
from envs.tasksets.toolhop.environment import data_file_of
from envs.tasksets.toolhop.questions import read_questions
from envs.tools import JsonObject


def run_audit(config: RunConfig, calls_per_tool: int) -> JsonObject:
    """Call every tool in its own sandbox; returns counts, and the tools that never answered.

    Raises ConfigError for other environments, and MissingError or DataFileError if the data file is
    missing or invalid.
    """
    if not isinstance(config.env, ToolHopEnvConfig):
        raise ConfigError(f"expected env.name = 'toolhop' for an audit, found {config.env.name!r}")
    questions = read_questions(data_file_of(config.env))
    unrecorded = config.tools.model_copy(update={"record": False})
    with ToolServerProcess(unrecorded) as server:

        async def run() -> Audit:
            client = ToolClient(server.address, config.tools)
            try:
                return await audit(questions, client, calls_per_tool, config.run.seed)
            finally:
                await client.close()

        found = asyncio.run(run())
    silent = [f"{tool.question}:{tool.tool}" for tool in found.tools if not tool.answered]
    return {**found.to_json(), "tools_without_an_answer": ", ".join(silent)}
