"""The environment, and the scripted teacher, that a recipe names."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from envs.config import EnvConfig, ToolServerConfig
from envs.endpoints import Endpoint
from envs.errors import ConfigError
from envs.messages import Reply
from envs.perturbation.perturb import PerturbedEnvironment
from envs.services.router import listed_tools
from envs.tasks import Environment
from envs.tasksets.catalog.environment import CatalogEnvironment
from envs.tasksets.catalog.teacher import direct_reply, draw_trial_calls, trial_reply
from envs.tasksets.file.environment import FileEnvironment
from envs.tasksets.toolhop import teacher as toolhop_teacher
from envs.tasksets.toolhop.environment import ToolHopEnvironment
from envs.tools import ToolSet
from rollout.episode import Mode


def make_environment(config: EnvConfig) -> Environment:
    """Return the environment that `[env]` names, its tools perturbed where that is asked.

    Raises MissingError, DataFileError, and InfraError where a server does not list its tools.
    """
    if config.perturbation == "clean":
        return _environment(config)
    return PerturbedEnvironment(_environment(config), config.perturbation, config.perturbation_seed)


def _environment(config: EnvConfig) -> Environment:
    match config.name:
        case "toolhop":
            return ToolHopEnvironment(config)
        case "file":
            return FileEnvironment(config, _listed_tools)
        case "catalog":
            return CatalogEnvironment(config.catalog)


def _listed_tools(endpoint: Endpoint) -> ToolSet:
    """Ask a server for its tools, from a thread: the caller may have an event loop of its own."""
    with ThreadPoolExecutor(1) as pool:
        asking = listed_tools(endpoint, ToolServerConfig(), os.environ)
        return pool.submit(asyncio.run, asking).result()


def teacher_of(config: EnvConfig, mode: Mode) -> tuple[Reply, Callable[[int, int], int]]:
    """Return the teacher's replies, and its trial budget from a seed and the full budget."""
    if config.name == "toolhop" and not config.path and config.perturbation == "clean":
        reply = toolhop_teacher.direct_reply if mode == "direct" else toolhop_teacher.trial_reply
        return reply, toolhop_teacher.full_budget
    if config.name != "catalog":
        raise ConfigError(
            f"environment {config.name!r} has no scripted teacher: "
            "let an endpoint teach (trialrun collect --source endpoint), "
            "or give episodes with --from RUN_DIRECTORY"
        )
    if config.perturbation != "clean":
        raise ConfigError(
            f"the scripted teacher knows the catalog as it is, found env.perturbation = "
            f"{config.perturbation!r}: teach with 'clean'"
        )
    return (direct_reply if mode == "direct" else trial_reply), draw_trial_calls
