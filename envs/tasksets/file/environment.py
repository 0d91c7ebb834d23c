"""The environment of the user's own tasks: questions in a JSONL file, tools from several sources.

Paths in a task are relative to the folder of the task file. Tool code is only read here, never run.
Servers that list their own tools are queried once, when the environment is created.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from envs.answers import last_number, one_spelling, whole_number
from envs.endpoints import Endpoint, McpHttpEndpoint, McpStdioEndpoint, OpenEnvEndpoint
from envs.errors import DataFileError, MissingError
from envs.sources.openapi import tool_set_of_openapi
from envs.sources.python import tool_set_of_class, tool_set_of_functions
from envs.tasks import Score, Task
from envs.tasksets.collection import TaskCollection, split_of
from envs.tasksets.file.config import FileEnvConfig
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

ListTools = Callable[[Endpoint], ToolSet]
"""Returns a server's tools. Raises ToolServerError, DeadlineError, ConfigError."""


@dataclass(frozen=True, slots=True)
class TextScorer:
    """Correct when the answer equals, or contains, the expected text; case, white space and the
    spelling of quotes, hyphens and accents are ignored.
    """

    expected: str
    contains: bool = False

    def score(self, answer: str) -> Score:
        """Return 1 or 0, also as the component `answer`."""
        given, wanted = _plain(answer), _plain(self.expected)
        correct = wanted in given if self.contains and wanted else given == wanted
        return Score(float(correct), {"answer": float(correct)})


@dataclass(frozen=True, slots=True)
class NumberScorer:
    """Correct when the last number in the answer is the expected one, within the tolerance.

    `envs.answers.last_number` says what a number is.
    """

    expected: float
    tolerance: float

    def score(self, answer: str) -> Score:
        """Return 1 or 0, also as the component `answer`.

        The tolerance is relative to the expected number, or absolute if that is below 1 in size.
        """
        found = last_number(answer)
        correct = found is not None and math.isclose(
            found,
            self.expected,
            abs_tol=self.tolerance * max(1.0, abs(self.expected)),
            rel_tol=0.0,
        )
        return Score(float(correct), {"answer": float(correct)})


class FileEnvironment(TaskCollection):
    """Tasks of `env.path`; each names its split, or a hash of its id selects it, as for ToolHop."""

    def __init__(self, config: FileEnvConfig, list_tools: ListTools) -> None:
        """Read the complete file.

        Raises MissingError, DataFileError, and what `list_tools` raises.
        """
        given = Path(config.path) if config.path else OWN_TASKS
        path = given / "tasks.jsonl" if given.is_dir() else given
        loader = _Loader(path.parent, list_tools)
        rows = read_rows(path)
        tasks = [_task(where, row, loader, config.heldout_percent) for where, row in rows]
        super().__init__(NAME, path, tasks)


class _Loader:
    """Loads the tool sets that rows describe, each only once."""

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
            return make(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise MissingError(f"expected a file at {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataFileError(f"{path}: expected text in UTF-8, found {error}") from error
        except DataFileError as error:
            raise DataFileError(f"{path}: {error}") from error


def _mcp_endpoint(place: McpPlace, folder: Path) -> Endpoint:
    if place.url:
        return McpHttpEndpoint(
            url=place.url,
            token_variable=place.token_variable,
            transport=place.transport,
            state=place.state,
        )
    return McpStdioEndpoint(
        command=place.command,
        environment=place.environment,
        variables=place.variables,
        folder=str(folder.resolve()),
        start=place.start,
        state=place.state,
    )


def _task(where: str, row: TaskRow, loader: _Loader, heldout_percent: int) -> Task:
    try:
        tool_set = loader.tool_set(row.tools)
    except (DataFileError, MissingError) as error:
        raise type(error)(f"{where}, field `tools`: {error}") from error
    return Task(
        id=f"{NAME}-{row.id}",
        environment=NAME,
        split=row.split or split_of(NAME, row.id, heldout_percent),
        question=row.question,
        tool_set=tool_set,
        scorer=_scorer(where, row),
        tags=row.tags,
    )


def _scorer(where: str, row: TaskRow) -> TextScorer | NumberScorer:
    if row.scorer != "numeric":
        text = row.answer if isinstance(row.answer, str) else json.dumps(row.answer)
        return TextScorer(text, contains=row.scorer == "contains")
    answer = row.answer
    expected = whole_number(answer) if isinstance(answer, str) else float(answer)
    if expected is None or not math.isfinite(expected):
        raise DataFileError(
            f"{where}, field `answer`: expected a number for the scorer `numeric`, found "
            f"{row.answer!r}: correct it, or use the scorer `exact`"
        )
    return NumberScorer(expected, row.tolerance)


def _plain(text: str) -> str:
    return " ".join(one_spelling(text).lower().split()).removesuffix(".").rstrip()
