"""The file format of a user's own tasks: one JSON object per line, validated field by field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictStr,
    Tag,
    ValidationError,
    field_validator,
)

from envs.errors import DataFileError, MissingError
from envs.tasks import Split

NonEmpty = Annotated[StrictStr, Field(min_length=1)]
_SHOWN = 80


class _Row(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class PythonTools(_Row):
    """`{"python": "bank.py", "class": "Bank"}`: the public methods of a class."""

    python: NonEmpty
    class_name: NonEmpty | None = Field(default=None, alias="class")


class FunctionTools(_Row):
    """`{"functions": "shop.py"}`: the public functions of a module."""

    functions: NonEmpty


class OpenApiTools(_Row):
    """`{"openapi": "api.json"}`: a simulation of the API, or with `base_url` the real API."""

    openapi: NonEmpty
    base_url: NonEmpty | None = None
    allowed_hosts: tuple[NonEmpty, ...] = ()
    operations: tuple[NonEmpty, ...] | None = None
    token_variable: str = ""


class McpPlace(_Row):
    """An MCP server: a command that starts it, or the URL of a running one."""

    command: tuple[NonEmpty, ...] = ()
    environment: dict[str, str] = {}
    variables: tuple[NonEmpty, ...] = ()
    start: tuple[NonEmpty, ...] = ()
    url: str = ""
    transport: Literal["http", "sse"] | None = None
    token_variable: str = ""
    state: Literal["session"] | None = None

    @field_validator("url")
    @classmethod
    def _one_place(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError("expected http(s)://host:port/path")
        return url


_OF_COMMANDS = ("environment", "variables", "start")


class McpServerTools(_Row):
    """`{"mcp": {"command": ["mcp-server-time"]}}` or `{"mcp": {"url": "http://..."}}`."""

    mcp: McpPlace

    @field_validator("mcp")
    @classmethod
    def _one_way(cls, place: McpPlace) -> McpPlace:
        if bool(place.command) == bool(place.url):
            raise ValueError("expected either `command` or `url`")
        foreign = ("transport", "token_variable") if place.command else _OF_COMMANDS
        if given := [key for key in foreign if getattr(place, key)]:
            kind = "command" if place.command else "url"
            raise ValueError(f"expected no `{given[0]}` with `{kind}`: it has no meaning there")
        return place


class OpenEnvPlace(_Row):
    """The URL of a running OpenEnv server."""

    url: NonEmpty


class OpenEnvServerTools(_Row):
    """`{"openenv": {"url": "http://host:port"}}`: the tools of an OpenEnv server."""

    openenv: OpenEnvPlace


_KINDS = ("python", "functions", "openapi", "mcp", "openenv")


def _kind(value: object) -> str | None:
    keys = value if isinstance(value, dict) else vars(value) if isinstance(value, _Row) else ()
    named = [kind for kind in _KINDS if kind in keys]
    return named[0] if len(named) == 1 else None


ToolSource = Annotated[
    Annotated[PythonTools, Tag("python")]
    | Annotated[FunctionTools, Tag("functions")]
    | Annotated[OpenApiTools, Tag("openapi")]
    | Annotated[McpServerTools, Tag("mcp")]
    | Annotated[OpenEnvServerTools, Tag("openenv")],
    Discriminator(
        _kind,
        custom_error_type="tool_source",
        custom_error_message=f"expected exactly one of the keys {', '.join(_KINDS)}",
    ),
]


class TaskRow(_Row):
    """One task; without `split`, a hash of the id selects the split."""

    id: NonEmpty
    question: NonEmpty
    answer: StrictStr | int | float
    scorer: Literal["exact", "numeric", "contains"] = "exact"
    """When an answer is correct. `exact`: equal to the expected text, ignoring case, white space,
    a final full stop, and typographic forms of quotes, hyphens and accents; `numeric`: its last
    number equals the expected one within `tolerance`; `contains`: the expected text occurs in it.
    """
    tolerance: float = Field(default=1e-6, ge=0)
    """Largest difference that `numeric` accepts: relative if the size of the expected number is
    above 1, else absolute.
    """
    split: Split | None = None
    tags: dict[str, str] = {}
    tools: ToolSource

    @field_validator("answer", mode="before")
    @classmethod
    def _no_truth(cls, answer: object) -> object:
        if isinstance(answer, bool):
            raise ValueError("expected text or a number; write true or false as text")
        return answer


def read_rows(path: Path) -> Iterator[tuple[str, TaskRow]]:
    """Yield every task of a file with its location (`file:line`).

    Raises MissingError if the file does not exist, DataFileError for a line that is not a task.
    """
    if not path.is_file():
        raise MissingError(
            f"expected a file of tasks, one JSON object per line, found none at {path}: set "
            "env.path to it, or to a folder with `tasks.jsonl`; empty means the example tasks"
        )
    lines_of_ids: dict[str, int] = {}
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}:{number}"
                    row = _row(where, line)
                    earlier = lines_of_ids.setdefault(row.id, number)
                    if earlier != number:
                        raise DataFileError(
                            f"{where}, field `id`: expected a unique id, found that of line "
                            f"{earlier}: rename one"
                        )
                    yield where, row
        except UnicodeDecodeError as error:
            raise DataFileError(f"{path}: expected text in UTF-8, found {error}") from error
    if not lines_of_ids:
        raise DataFileError(f"{path}: expected at least one task, found an empty file")


def _row(where: str, line: str) -> TaskRow:
    try:
        return TaskRow.model_validate(json.loads(line.rstrip()))
    except json.JSONDecodeError as error:
        raise DataFileError(
            f"{where}, column {error.colno}: invalid JSON ({error.msg}): write one object per "
            "line, and line breaks in texts as \\n"
        ) from error
    except (ValidationError, RecursionError) as error:
        raise DataFileError(f"{where}{_fault(error)}") from error


def _fault(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return ": expected a task, found an object with too many nested levels"
    first = error.errors(include_url=False)[0]
    tagged = first["loc"][:1] == ("tools",)  # the second part is then the kind, not a field
    parts = first["loc"][:1] + first["loc"][2:] if tagged else first["loc"]
    place = ".".join(str(part) for part in parts)
    named = f", field `{place}`" if place else ""
    if first["type"] == "missing":
        return f"{named}: expected this field, found none: add it"
    if first["type"] == "extra_forbidden":
        return f"{named}: unknown field: remove it or correct its name"
    return f"{named}: {first['msg']}, found {json.dumps(first['input'], default=str)[:_SHOWN]}"
