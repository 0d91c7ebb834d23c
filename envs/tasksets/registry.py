"""The registry of task sets: their names, their config sections, and how to create them.

To add a task set, write a folder with its section (a subclass of `EnvConfig`) and its environment
(a subclass of `Environment`), and add a line to `TASK_SETS`. Outside of the project, an environment
needs no line: `plugins.py` finds it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, create_model

from envs.config import EnvConfig
from envs.tasks import Environment
from envs.tasksets.catalog.config import CatalogEnvConfig
from envs.tasksets.catalog.environment import CatalogEnvironment
from envs.tasksets.file.config import FileEnvConfig
from envs.tasksets.file.environment import FileEnvironment
from envs.tasksets.outside import Outside
from envs.tasksets.plugins import (
    PluginEnvConfig,
    create_plugin,
    is_plugin,
    plugin_names,
)
from envs.tasksets.toolhop.config import ToolHopEnvConfig
from envs.tasksets.toolhop.environment import ToolHopEnvironment

ConfigOf = TypeVar("ConfigOf", bound=EnvConfig)


@dataclass(frozen=True, slots=True)
class TaskSet(Generic[ConfigOf]):
    """A task set: the class of its `[env]` section, and how to create its environment from it."""

    section: type[ConfigOf]
    create: Callable[[ConfigOf, Outside], Environment]


TaskSets = Mapping[str, TaskSet[Any]]
"""Task sets by name; the name is also the default of `name` in the section."""

TASK_SETS: TaskSets = {
    "catalog": TaskSet(CatalogEnvConfig, lambda config, _: CatalogEnvironment(config.catalog)),
    "toolhop": TaskSet(ToolHopEnvConfig, lambda config, _: ToolHopEnvironment(config)),
    "file": TaskSet(FileEnvConfig, FileEnvironment),
}
PLUGIN: TaskSet[PluginEnvConfig] = TaskSet(PluginEnvConfig, create_plugin)
"""Environments of others, which have no line of their own."""
DEFAULT = "catalog"
"""The task set of an `[env]` section without `name`."""


def create_environment(
    config: EnvConfig, outside: Outside, task_sets: TaskSets = TASK_SETS
) -> Environment:
    """Return the environment that `config` describes, with unperturbed tools.

    Raises MissingError, DataFileError, ConfigError, and what `outside` raises.
    """
    return _of(config.name, task_sets).create(config, outside)


def read_section(tree: object, task_sets: TaskSets = TASK_SETS) -> object:
    """Return `[env]` as the section of the task set that its `name` selects.

    Keys of other task sets are checked and ignored. Thus `env.name` can be changed on the command
    line for any recipe, and a run directory opens even if its `config.toml` has the keys of every
    task set. A key that no task set knows is an error. Anything but a table is returned as
    it is. Raises pydantic's ValidationError.
    """
    if not isinstance(tree, Mapping):
        return tree
    name = tree.get("name", DEFAULT)
    if not isinstance(name, str) or not (name in task_sets or is_plugin(name)):
        raise _unknown_name(name, task_sets)
    chosen = _of(name, task_sets).section
    foreign: set[str] = set()
    for other in (*task_sets.values(), PLUGIN):
        keys = (other.section.model_fields.keys() - chosen.model_fields.keys()) & tree.keys()
        foreign |= keys
        _check_foreign(other.section, {key: tree[key] for key in keys})
    return chosen.model_validate({key: tree[key] for key in tree if key not in foreign})


EnvSection = Annotated[SerializeAsAny[EnvConfig], BeforeValidator(read_section)]
"""The type of `[env]` in a recipe: the section of the task set that `env.name` selects."""


def every_key(task_sets: TaskSets = TASK_SETS) -> type[EnvConfig]:
    """Return a section with the keys of every task set, to look up and to document keys.

    Of a key that several task sets have, it shows the first one's.
    """
    fields: dict[str, Any] = {}
    for task_set in (PLUGIN, *reversed(list(task_sets.values()))):
        for key, field in task_set.section.model_fields.items():
            fields[key] = (field.annotation, field)
    about = EnvConfig.model_fields["name"].description
    fields["name"] = (Literal[tuple(task_sets)], Field(default=DEFAULT, description=about))
    return create_model("EveryEnvKey", __base__=EnvConfig, **fields)


def _of(name: str, task_sets: TaskSets) -> TaskSet[Any]:
    return task_sets.get(name, PLUGIN)


def _check_foreign(section: type[EnvConfig], tree: Mapping[str, object]) -> None:
    """Raise ValidationError for a wrong key or value; keys of `section` may be missing."""
    try:
        section.model_validate(tree)
    except ValidationError as error:
        if any(fault["type"] != "missing" for fault in error.errors()):
            raise


def _unknown_name(name: object, task_sets: TaskSets) -> ValidationError:
    known_names = [*map(repr, (*task_sets, *plugin_names())), "a class as 'module:Class'"]
    *others, last = known_names
    expected = f"{', '.join(others)} or {last}" if others else last
    return ValidationError.from_exception_data(
        "EnvConfig",
        [
            {
                "type": "literal_error",
                "loc": ("name",),
                "input": name,
                "ctx": {"expected": expected},
            }
        ],
    )
