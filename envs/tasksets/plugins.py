"""Environments that are not part of this project: a class by its path, or by an entry point."""

import inspect
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import cast

from pydantic import Field, JsonValue, field_validator

from envs.config import EnvConfig
from envs.errors import ConfigError
from envs.tasks import Environment
from envs.tasksets.outside import Outside

GROUP = "trialrun.environments"
"""Group of entry points that name environments."""
_OUTSIDE = "outside"
"""Argument of a constructor that gets judges, simulated users and servers."""


class PluginEnvConfig(EnvConfig):
    """`[env]` with `name = "module:Class"`, or the name of an entry point in the group
    `trialrun.environments`.
    """

    name: str = ""
    """Path or entry point of your own environment, a subclass of `envs.tasks.Environment`."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of the constructor of an environment of your own (`env.name = "module:Class"`)."""

    @field_validator("name")
    @classmethod
    def _is_of_this_task_set(cls, name: str) -> str:
        if name and not is_plugin(name):
            raise ValueError("expected module:Class, or the name of an entry point")
        return name


def is_plugin(name: str) -> bool:
    """Whether `name` is a path `module:Class` or an installed entry point; nothing is imported."""
    module, found, attribute = name.partition(":")
    if found:
        return all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))
    return bool(name) and name in plugin_names()


def plugin_names() -> list[str]:
    """Return the names of installed entry points."""
    return sorted(entry_points(group=GROUP).names)


def create_plugin(config: PluginEnvConfig, outside: Outside) -> Environment:
    """Return the environment that `config` names, made with its options.

    Raises ConfigError for what cannot be imported, is no environment, or takes other arguments, and
    whatever the constructor raises.
    """
    found = _loaded(config.name)
    if not (isinstance(found, type) and Environment in found.__mro__):
        raise ConfigError(
            f"env.name = {config.name!r}: expected a subclass of envs.tasks.Environment, found "
            f"{found!r}"
        )
    options: dict[str, object] = dict(config.options)
    if _OUTSIDE in inspect.signature(found).parameters:
        options[_OUTSIDE] = outside
    try:
        inspect.signature(found).bind(**options)
    except TypeError as error:
        raise ConfigError(
            f"env.options: expected the arguments of {config.name}, found that it has {error}: "
            "correct them"
        ) from error
    environment = cast("type[Environment]", found)(**options)  # type: ignore[call-arg]
    if not isinstance(environment.name, str) or not environment.name:
        raise ConfigError(f"expected a `name` (text) of the environment {config.name}, found none")
    return environment


def _loaded(name: str) -> object:
    try:
        if ":" in name:
            return resolve_name(name)
        [entry] = entry_points(group=GROUP, name=name)
        return entry.load()
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"env.name = {name!r}: expected a class that can be imported, found {error}: start "
            "trialrun in the folder of the module, or install it"
        ) from error
