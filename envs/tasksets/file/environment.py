"""The environment of the user's own tasks: questions in a JSONL file, tools from several sources.

Paths in a task are relative to the folder of the task file. Tool code is only read here, never run.
Servers that list their own tools are queried once, when the environment is created.
"""

from dataclasses import replace
from pathlib import Path

from envs.errors import ConfigError, DataFileError, MissingError
from envs.seeds import stable_hash
from envs.sources.python_folder import Hidden
from envs.tasks import Task
from envs.tasksets.collection import TaskCollection, split_of
from envs.tasksets.file.config import FileEnvConfig
from envs.tasksets.file.rows import OpenEnvServerTools, TaskRow, ToolSource, read_rows
from envs.tasksets.file.scorers import Scored, ScorerMaker, worlds_of
from envs.tasksets.file.tool_loading import ToolLoader
from envs.tasksets.outside import Outside

NAME = "file"
OWN_TASKS = Path(__file__).parent / "bank"


class FileEnvironment(TaskCollection):
    """Tasks of `env.path`; each names its split, or a hash of its id selects it, as for ToolHop."""

    def __init__(self, config: FileEnvConfig, outside: Outside) -> None:
        """Read the complete file.

        Raises MissingError, DataFileError, ConfigError, and what `outside` raises.
        """
        given = Path(config.path) if config.path else OWN_TASKS
        path = given / "tasks.jsonl" if given.is_dir() else given
        maker = ScorerMaker(
            folder=path.parent,
            judge=outside.judge,
            simulated_user=outside.simulated_user,
            trusted=config.trusted_scorers,
            limit_s=config.scorer_timeout_s,
        )
        rows = list(read_rows(path))
        hidden = maker.hidden([*config.scorers, *(s for _, row in rows for s in row.scorers)])
        hidden = Hidden(refused=(path, *hidden.refused), skipped=hidden.skipped)
        loader = ToolLoader(path.parent, hidden, outside)
        tasks = [_task(where, row, config, loader, maker) for where, row in rows]
        tasks = [_opened(task, outside) for task in tasks]
        super().__init__(NAME, path, tasks)


def _opened(task: Task, outside: Outside) -> Task:
    """Return a task whose question ends with the first observation of its world, if it has one."""
    worlds = worlds_of(task.tool_set)
    if not worlds:
        return task
    seen = [outside.first_observation(world) for world in worlds]
    return replace(task, question="\n\n".join(filter(None, (task.question, *seen))))


def _seeded(row: TaskRow) -> list[ToolSource]:
    """Return the sources of a task; a world without a seed gets that of the task, so that all
    episodes of the task start alike.
    """
    seed = stable_hash(NAME, "world", row.id) & 0x7FFFFFFF
    return [
        source.model_copy(update={"openenv": source.openenv.seeded(seed)})
        if isinstance(source, OpenEnvServerTools) and source.openenv.world
        else source
        for source in row.tools
    ]


def _task(
    where: str, row: TaskRow, config: FileEnvConfig, loader: ToolLoader, maker: ScorerMaker
) -> Task:
    scorers = (*config.scorers, *row.scorers)
    try:
        tool_set = loader.tool_set(_seeded(row), named=bool(scorers))
    except (DataFileError, MissingError) as error:
        raise type(error)(f"{where}, field `tools`: {error}") from error
    scored = Scored(
        answer=row.answer,
        match=row.scorer,
        tolerance=row.tolerance,
        scorers=scorers,
        user=row.user,
        tool_set=tool_set,
    )
    try:
        scorer, user = maker.scorer(scored), maker.user(row.user)
    except (ConfigError, MissingError) as error:
        raise type(error)(f"{where}: {error}") from error
    return Task(
        id=f"{NAME}-{row.id}",
        environment=NAME,
        split=row.split or split_of(NAME, row.id, config.heldout_percent),
        question=row.question,
        tool_set=tool_set,
        scorer=scorer,
        tags=row.tags,
        user=user,
    )
