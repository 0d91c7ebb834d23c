"""The environment of the user's own tasks: questions in a JSONL file, tools from several sources.

Paths in a task are relative to the folder of the task file. Tool code is only read here, never run.
Servers that list their own tools are queried once, when the environment is created.
"""

from pathlib import Path

from envs.errors import ConfigError, DataFileError, MissingError
from envs.sources.python_folder import Hidden
from envs.tasks import Task
from envs.tasksets.collection import TaskCollection, split_of
from envs.tasksets.file.config import FileEnvConfig
from envs.tasksets.file.rows import TaskRow, read_rows
from envs.tasksets.file.scorers import Scored, ScorerMaker
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
        loader = ToolLoader(path.parent, hidden, outside.list_tools)
        tasks = [_task(where, row, config, loader, maker) for where, row in rows]
        super().__init__(NAME, path, tasks)


def _task(
    where: str, row: TaskRow, config: FileEnvConfig, loader: ToolLoader, maker: ScorerMaker
) -> Task:
    scorers = (*config.scorers, *row.scorers)
    try:
        tool_set = loader.tool_set(row.tools, named=bool(scorers))
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
