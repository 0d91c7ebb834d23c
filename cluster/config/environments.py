"""The environment that a recipe names, with what it needs from the outside world."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from envs.config import EnvConfig, ToolServerConfig
from envs.endpoints import Endpoint
from envs.perturbation.perturb import PerturbedEnvironment
from envs.services.router import listed_tools
from envs.tasks import Environment
from envs.tasksets.registry import create_environment
from envs.tools import ToolSet


def make_environment(config: EnvConfig, tools: ToolServerConfig | None = None) -> Environment:
    """Return the environment that `[env]` names, with its tools perturbed if `[env]` says so.

    `tools` has the time limits for servers that are asked for their tools. Raises MissingError,
    DataFileError, and InfraError where a server does not list its tools.
    """
    limits = tools or ToolServerConfig()
    environment = create_environment(config, lambda endpoint: _listed_tools(endpoint, limits))
    if config.perturbation == "clean":
        return environment
    return PerturbedEnvironment(environment, config.perturbation, config.perturbation_seed)


def _listed_tools(endpoint: Endpoint, config: ToolServerConfig) -> ToolSet:
    """Ask a server for its tools, in a thread: the caller may be running an event loop."""
    with ThreadPoolExecutor(1) as pool:
        asking = listed_tools(endpoint, config, os.environ)
        return pool.submit(asyncio.run, asking).result()
