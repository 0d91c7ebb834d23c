"""What in a recipe runs code of somebody's choice, contacts a host, or reaches outside of a run.

A recipe that the user wrote may do all of it. One that lies in a run directory of unknown origin
may do none of it: whoever made the directory would act with the rights of who looks at it.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config.places import BUILT_MODELS
from cluster.config.run_config import RunConfig
from envs.tasksets.file.config import FileEnvConfig
from envs.tasksets.file.environment import OWN_TASKS
from envs.tasksets.file.rows import (
    FunctionTools,
    McpServerTools,
    OpenApiTools,
    OpenEnvServerTools,
    PythonTools,
    TaskRow,
    ToolSource,
    read_rows,
)
from envs.tasksets.file.scorer_rows import FunctionRow, ScorerRow
from envs.tasksets.plugins import PluginEnvConfig
from learner.config import is_function_path
from rollout.chat.shipped import shipped_names

_LEAVES = "leads out of the run directory"
_ENOUGH = 4
"""Dangerous tasks that are named; there may be thousands alike."""


@dataclass(frozen=True, slots=True)
class Risk:
    """One key of a recipe that could do harm; `found` is its value, `why` what it would do."""

    key: str
    found: str
    why: str
    played: bool = False
    """Whether it does so only where episodes are played: not in a replay of recorded ones."""

    def __str__(self) -> str:
        return f"{self.key} = {self.found!r} ({self.why})"


def risks_of(config: RunConfig, root: Path, models: Path) -> list[Risk]:
    """Return what in `config`, a recipe in the run directory `root`, could do harm.

    `models` is the user's own folder of models. Raises MissingError and DataFileError for a file of
    tasks that cannot be read.
    """
    inside = _Inside(root)
    return [
        *_environment(config, inside),
        *_chats(config),
        *_code(config),
        *_hosts(config),
        *_places(config, inside, models),
    ]


def without(risks: list[Risk], keys: Collection[str]) -> list[Risk]:
    """Return those of `risks` whose key is none of `keys`, and below none of them."""
    return [r for r in risks if not any(r.key == k or r.key.startswith(f"{k}.") for k in keys)]


class _Inside:
    """Whether paths stay in one folder, wherever links lead."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def holds(self, path: str | Path) -> bool:
        return (self.root / Path(path).expanduser()).resolve().is_relative_to(self.root)


def _environment(config: RunConfig, inside: _Inside) -> Iterator[Risk]:
    env: Any = config.env
    if isinstance(env, PluginEnvConfig):
        yield Risk("env.name", env.name, "imports a module")
        return
    path = str(getattr(env, "path", ""))
    if path and not inside.holds(path):
        yield Risk("env.path", path, "is read outside of the run directory")
        return
    if isinstance(env, FileEnvConfig):
        yield from _tasks(env, inside)


def _tasks(env: FileEnvConfig, inside: _Inside) -> Iterator[Risk]:
    if env.trusted_scorers:
        why = "runs scorers outside of the sandbox"
        yield Risk("env.trusted_scorers", "true", why, played=True)
    given = Path(env.path).expanduser() if env.path else OWN_TASKS
    file = given / "tasks.jsonl" if given.is_dir() else given
    folder, holds = file.parent, inside.holds
    if not env.path:
        holds = _Inside(OWN_TASKS).holds
    for row in env.scorers:
        yield from _risks("env.scorers", _scorer(row, folder, holds))
    if not holds(file):  # a link in the folder
        yield Risk("env.path", str(file), _LEAVES)
        return
    found = (risk for where, row in read_rows(file) for risk in _task(where, row, folder, holds))
    for _, risk in zip(range(_ENOUGH), found, strict=False):
        yield risk


def _task(where: str, row: TaskRow, folder: Path, holds: Callable[[Path], bool]) -> Iterator[Risk]:
    for source in row.tools:
        yield from _risks(f"env.path, {where}", _tools(source, folder, holds))
    for scorer in row.scorers:
        yield from _risks(f"env.path, {where}", _scorer(scorer, folder, holds))


def _risks(place: str, found: Iterator[tuple[str, str]]) -> Iterator[Risk]:
    key, _, where = place.partition(", ")
    for value, why in found:
        yield Risk(key, value, f"{where}: {why}" if where else why, played=why != _LEAVES)


def _tools(
    source: ToolSource, folder: Path, holds: Callable[[Path], bool]
) -> Iterator[tuple[str, str]]:
    paths: tuple[str | None, ...] = ()
    match source:
        case McpServerTools(mcp=place) if place.command:
            yield " ".join((*place.start, *place.command)), "starts a process"
        case McpServerTools(mcp=place):
            yield place.url, "contacts a host"
        case OpenEnvServerTools(openenv=place):
            yield place.url, "contacts a host"
        case OpenApiTools():
            paths = (source.openapi, source.fixtures)
            if source.base_url is not None:
                yield source.base_url, "contacts a host"
        case PythonTools():
            paths = (source.python, *source.files)
        case FunctionTools():
            paths = (source.functions, *source.files)
    yield from _leaving(paths, folder, holds)


def _scorer(
    row: ScorerRow, folder: Path, holds: Callable[[Path], bool]
) -> Iterator[tuple[str, str]]:
    if isinstance(row, FunctionRow):
        if row.trusted:
            yield row.function, "runs outside of the sandbox"
        yield from _leaving((row.function.partition(":")[0],), folder, holds)


def _leaving(
    paths: Collection[str | None], folder: Path, holds: Callable[[Path], bool]
) -> Iterator[tuple[str, str]]:
    for path in paths:
        if path is not None and not holds(folder / path):
            yield path, _LEAVES


def _chats(config: RunConfig) -> Iterator[Risk]:
    """Models behind an API: they get what episodes hold, and the key of a variable."""
    chats = {"judge": config.judge, "simulated_user": config.simulated_user}
    if config.collect.source == "endpoint":
        chats["collect.endpoint"] = config.collect.endpoint
    for key, chat in chats.items():
        if chat.model:
            secret = f", and sends it ${chat.key_variable}" if chat.key_variable else ""
            why = f"contacts a host{secret}"
            yield Risk(f"{key}.base_url", chat.base_url, why, played=True)


def _code(config: RunConfig) -> Iterator[Risk]:
    isolation = config.tools.isolation
    if isolation.unsafe or isolation.required == "none":
        why = "runs tools without a sandbox"
        yield Risk("tools.isolation.unsafe", "true", why, played=True)
    if isolation.packages:
        names = ", ".join(isolation.packages)
        why = "imports modules in tool servers"
        yield Risk("tools.isolation.packages", names, why, played=True)
    for key in ("loss", "tis_mode"):
        value = getattr(config.learner, key)
        if is_function_path(value):
            yield Risk(f"learner.{key}", value, "imports a module")


def _hosts(config: RunConfig) -> Iterator[Risk]:
    if config.mirror.url:
        yield Risk("mirror.url", config.mirror.url, "copies runs to and from a storage")
    for sink in config.metrics.sinks:
        if sink != "tensorboard":
            yield Risk("metrics.sinks", sink, "sends metrics to a host")


def _places(config: RunConfig, inside: _Inside, models: Path) -> Iterator[Risk]:
    """Folders that are written to, and files whose text is used. A model's folder is not among
    them: weights, tokenizer and configuration are read as data.
    """
    template = config.model.chat_template
    if template and template not in shipped_names() and not inside.holds(template):
        yield Risk("model.chat_template", template, "is read outside of the run directory")
    run = Path(config.run.dir).expanduser()
    if not (inside.holds(run) or run.resolve() == inside.root.parent):
        yield Risk("run.dir", config.run.dir, "is written to, outside of the run directory")
    cache, builds = Path(config.run.models_dir).expanduser(), _builds_model(config)
    if builds and not inside.holds(cache) and cache.resolve() != models.resolve():
        yield Risk("run.models_dir", config.run.models_dir, "gets a model that is built or loaded")
    turns = config.collect.turns
    if turns and not inside.holds(turns):
        yield Risk("collect.turns", turns, "is read outside of the run directory")
    record = config.tools.record_dir
    if config.tools.record and record and not inside.holds(record):
        yield Risk("tools.record_dir", record, "is written to, outside of the run directory")
    if config.cluster.shm_dir != "/dev/shm":
        yield Risk("cluster.shm_dir", config.cluster.shm_dir, "gets the weights")


def _builds_model(config: RunConfig) -> bool:
    path = config.model.path
    return path in BUILT_MODELS or not (Path(path).expanduser() / "config.json").is_file()
