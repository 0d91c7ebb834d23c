"""The environment of the user's own tasks: questions in a JSONL file, tools from wherever they are.

Files named by a task lie beside the file of tasks. Tool code is read and never run here; servers
that list their tools themselves are asked once, when the environment is made.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.config import EnvConfig
from envs.endpoints import Endpoint, McpHttpEndpoint, McpStdioEndpoint, OpenEnvEndpoint
from envs.errors import ConfigError, DataFileError, MissingError
from envs.seeds import stable_hash
from envs.sources.openapi import tool_set_of_openapi
from envs.sources.python import tool_set_of_class, tool_set_of_functions
from envs.tasks import Score, Split, Task
from envs.tasksets.file.rows import (
    FunctionTools,
    McpPlace,
    McpServerTools,
    OpenApiTools,
    OpenEnvServerTools,
    PythonTools,
    TaskRow,
    ToolSource,
    read_rows,
)
from envs.tools import ToolSet

NAME = "file"
OWN_TASKS = Path(__file__).parent / "bank"
VALIDATION_PERCENT = 10
"""Share of what is not held out that forms the validation split."""

ListTools = Callable[[Endpoint], ToolSet]
"""Asks a server for its tools. Raises ToolServerError, DeadlineError, ConfigError."""

_NUMBER = re.compile(r"[-+]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class TextScorer:
    """Right is an equal text, or one that contains the expected, but for case and blanks."""

    expected: str
    contains: bool = False

    def score(self, answer: str) -> Score:
        """Return 1 or 0, also as the part `answer`."""
        given, wanted = _plain(answer), _plain(self.expected)
        right = wanted in given if self.contains and wanted else given == wanted
        return Score(float(right), {"answer": float(right)})


@dataclass(frozen=True, slots=True)
class NumberScorer:
    """Right is an answer whose only number, or whose last, is the expected one."""

    expected: float
    tolerance: float

    def score(self, answer: str) -> Score:
        """Return 1 or 0, also as the part `answer`."""
        found = _NUMBER.findall(answer)
        right = bool(found) and math.isclose(
            float(found[-1].replace(",", "").replace("_", "")),
            self.expected,
            abs_tol=self.tolerance * max(1.0, abs(self.expected)),
            rel_tol=0.0,
        )
        return Score(float(right), {"answer": float(right)})


class FileEnvironment:
    """Tasks of `env.path`, split as they say or by a hash of their id, as ToolHop's are."""

    def __init__(self, config: EnvConfig, list_tools: ListTools) -> None:
        """Read the whole file. Raises MissingError, DataFileError, and what `list_tools` raises."""
        given = Path(config.path) if config.path else OWN_TASKS
        self.path = given / "tasks.jsonl" if given.is_dir() else given
        loader = _Loader(self.path.parent, list_tools)
        self._tasks = tuple(
            _task(where, row, loader, config.heldout_percent) for where, row in read_rows(self.path)
        )

    @property
    def name(self) -> str:
        return NAME

    def all_tasks(self) -> Sequence[Task]:
        """Return every task of the file, whatever its split, in file order."""
        return self._tasks

    def tasks(self, split: Split, seed: int, count: int | None) -> Sequence[Task]:
        """Return `count` tasks of `split`, or all when None, in an order drawn from `seed`.

        Raises ConfigError where the split has fewer than `count` tasks, or none.
        """
        pool = [task for task in self._tasks if task.split == split]
        if not pool or (count is not None and count > len(pool)):
            raise ConfigError(
                f"expected {count or 'some'} tasks in the {split} split of {self.path}, found "
                f"{len(pool)}: ask for fewer or another split, add tasks, or name their `split`"
            )
        drawn = sorted(pool, key=lambda task: stable_hash(NAME, "draw", seed, task.id))
        return tuple(drawn[:count])


class _Loader:
    """Tool sets by what a row says about them, each made once."""

    def __init__(self, folder: Path, list_tools: ListTools) -> None:
        self._folder = folder
        self._list_tools = list_tools
        self._made: dict[str, ToolSet] = {}

    def tool_set(self, source: ToolSource) -> ToolSet:
        """Return the tool set. Raises MissingError, DataFileError, and what listing raises."""
        key = f"{type(source).__name__} {source.model_dump_json()}"
        if key not in self._made:
            self._made[key] = self._make(source)
        return self._made[key]

    def _make(self, source: ToolSource) -> ToolSet:
        match source:
            case PythonTools(python=name, class_name=class_name):
                return self._read(name, lambda text: tool_set_of_class(text, class_name))
            case FunctionTools(functions=name):
                return self._read(name, tool_set_of_functions)
            case OpenApiTools():
                return self._read(
                    source.openapi,
                    lambda text: tool_set_of_openapi(
                        text,
                        base_url=source.base_url,
                        allowed_hosts=source.allowed_hosts,
                        operations=source.operations,
                        token_variable=source.token_variable,
                    ),
                )
            case McpServerTools(mcp=place):
                return self._list_tools(_mcp_endpoint(place, self._folder))
            case OpenEnvServerTools(openenv=place):
                return self._list_tools(OpenEnvEndpoint(url=place.url))

    def _read(self, name: str, make: Callable[[str], ToolSet]) -> ToolSet:
        path = self._folder / name
        try:
            return make(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise MissingError(f"expected a file at {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataFileError(f"{path}: expected text in UTF-8, found {error}") from error
        except DataFileError as error:
            raise DataFileError(f"{path}: {error}") from error


def _mcp_endpoint(place: McpPlace, folder: Path) -> Endpoint:
    if place.url:
        return McpHttpEndpoint(url=place.url, token_variable=place.token_variable)
    return McpStdioEndpoint(
        command=place.command, environment=place.environment, folder=str(folder.resolve())
    )


def _task(where: str, row: TaskRow, loader: _Loader, heldout_percent: int) -> Task:
    try:
        tool_set = loader.tool_set(row.tools)
    except (DataFileError, MissingError) as error:
        raise type(error)(f"{where}, field `tools`: {error}") from error
    return Task(
        id=f"{NAME}-{row.id}",
        environment=NAME,
        split=row.split or _split_of(row.id, heldout_percent),
        question=row.question,
        tool_set=tool_set,
        scorer=_scorer(where, row),
        tags=row.tags,
    )


def _scorer(where: str, row: TaskRow) -> TextScorer | NumberScorer:
    if row.scorer != "numeric":
        text = row.answer if isinstance(row.answer, str) else json.dumps(row.answer)
        return TextScorer(text, contains=row.scorer == "contains")
    try:
        expected = float(row.answer)
    except ValueError as error:
        raise DataFileError(
            f"{where}, field `answer`: expected a number for the scorer `numeric`, found "
            f"{row.answer!r}: correct it, or take the scorer `exact`"
        ) from error
    return NumberScorer(expected, row.tolerance)


def _split_of(task_id: str, heldout_percent: int) -> Split:
    if stable_hash(NAME, "heldout", task_id) % 100 < heldout_percent:
        return "heldout"
    if stable_hash(NAME, "validation", task_id) % 100 < VALIDATION_PERCENT:
        return "validation"
    return "train"


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".").rstrip()
