"""The environment, and the scripted teacher, that a recipe names."""

from collections.abc import Callable

from envs.catalog.environment import CatalogEnvironment
from envs.catalog.teacher import direct_reply, draw_trial_calls, trial_reply
from envs.config import EnvConfig
from envs.errors import ConfigError
from envs.messages import Reply
from envs.perturbation import PerturbedEnvironment
from envs.tasks import Environment
from envs.toolhop import ToolHopEnvironment
from rollout.episode import Mode


def make_environment(config: EnvConfig) -> Environment:
    """Return the environment that `[env]` names, its tools perturbed where that is asked.

    Raises MissingError, DataFileError.
    """
    if config.perturbation == "clean":
        return _environment(config)
    return PerturbedEnvironment(_environment(config), config.perturbation, config.perturbation_seed)


def _environment(config: EnvConfig) -> Environment:
    return ToolHopEnvironment(config) if config.name == "toolhop" else CatalogEnvironment()


def teacher_of(config: EnvConfig, mode: Mode) -> tuple[Reply, Callable[[int, int], int]]:
    """Return the teacher's replies, and its trial budget from a seed and the full budget."""
    if config.name != "catalog":
        raise ConfigError(
            f"environment {config.name!r} has no scripted teacher: "
            "give episodes with --data RUN_DIRECTORY"
        )
    if config.perturbation != "clean":
        raise ConfigError(
            f"the scripted teacher knows the catalog as it is, found env.perturbation = "
            f"{config.perturbation!r}: teach with 'clean'"
        )
    return (direct_reply if mode == "direct" else trial_reply), draw_trial_calls
