"""The environment that a recipe names, with what it needs from the outside world."""

import asyncio
import os
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from cluster.config.run_config import RunConfig
from envs.config import EnvConfig
from envs.perturbation.perturb import PerturbedEnvironment
from envs.remote.openenv_client import first_observation
from envs.services.router import listed_tools
from envs.tasks import Environment
from envs.tasksets.outside import Outside
from envs.tasksets.registry import create_environment

Result = TypeVar("Result")


def environment_of(config: RunConfig, outside: Outside | None = None) -> Environment:
    """Return the environment of a run, whose servers are `outside`, or those that its recipe names.

    Raises as `make_environment` does.
    """
    return make_environment(config.env, outside or _outside(config))


def make_environment(config: EnvConfig, outside: Outside | None = None) -> Environment:
    """Return the environment that `[env]` names, with its tools perturbed if `[env]` says so.

    `outside` are the servers and models that its tasks may need. Raises MissingError,
    DataFileError, ConfigError, and InfraError where a server does not list its tools.
    """
    environment = create_environment(config, outside or _outside(RunConfig()))
    if config.perturbation == "clean":
        return environment
    return PerturbedEnvironment(environment, config.perturbation, config.perturbation_seed)


def _outside(config: RunConfig) -> Outside:
    return Outside(
        list_tools=lambda endpoint: _waited_for(listed_tools(endpoint, config.tools, os.environ)),
        first_observation=lambda endpoint: _waited_for(first_observation(endpoint, config.tools)),
        judge=config.judge,
        simulated_user=config.simulated_user,
    )


def _waited_for(asking: Coroutine[Any, Any, Result]) -> Result:
    """Ask a server, in a thread: the caller may be running an event loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, asking).result()
